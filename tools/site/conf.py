"Sphinx settings of the documentation site; `tools/build_site.py` runs them"
import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here.parent)) # for `sphinx_pages.slug`
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here.parents[1]/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project = html_title = cfg['lib_name']
author, copyright = cfg['author'], cfg['author']
extensions = ['myst_nb', 'sphinx_copybutton']
exclude_patterns = ['.doctrees']
suppress_warnings = ['myst.header'] # an API heading may follow the page's title directly

nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['colon_fence', 'dollarmath', 'amsmath', 'attrs_inline', 'attrs_block', 'deflist', 'html_image']
myst_dmath_double_inline = True # `$$..$$` inside a paragraph, as Pandoc reads it
myst_heading_anchors = 4
myst_heading_slug_func = 'sphinx_pages.slug'

html_theme = 'furo'
html_static_path = ['site.css', 'mathjax']
html_css_files = ['site.css']
html_show_sourcelink = html_copy_source = html_show_copyright = False
html_use_index = False
brand = lambda primary, content: {'color-brand-primary': primary, 'color-brand-content': content}
html_theme_options = dict(
    navigation_with_keys=True,
    light_css_variables=brand('#0b5c8e', '#0b5c8e') | {'font-stack': 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif'},
    dark_css_variables=brand('#7ab8e0', '#7ab8e0'))
mathjax_path = 'tex-svg.js' # in html_static_path: the site works without a network
mathjax3_config = dict(options=dict(enableMenu=False), svg=dict(fontCache='global'), tex=dict(packages={'[-]': ['noundefined']})) # an unknown command is an error
copybutton_selector = 'div:not(.cell_output) > div.highlight pre' # inputs, not outputs
