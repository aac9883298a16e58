"Sphinx settings of the documentation site; `tools/build_site.py` runs them"
import re, sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from furo.navigation import get_navigation_tree
from sphinx.environment.adapters.toctree import global_toctree_for_doc

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
html_show_search_summary = False # it is fetched page by page, which no browser does from file://; `search.js` shows subtitles
brand = lambda primary, content: {'color-brand-primary': primary, 'color-brand-content': content}
html_theme_options = dict(
    navigation_with_keys=True,
    light_css_variables=brand('#0b5c8e', '#0b5c8e') | {'font-stack': 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif'},
    dark_css_variables=brand('#7ab8e0', '#7ab8e0'))
mathjax_path = 'tex-svg.js' # in html_static_path: the site works without a network
mathjax3_config = dict(options=dict(enableMenu=False), svg=dict(fontCache='global'), tex=dict(packages={'[-]': ['noundefined']})) # an unknown command is an error
copybutton_selector = 'div:not(.cell_output) > div.highlight pre' # inputs, not outputs

# The navigation has a link to every page. Made anew for each of them, as Furo does it, it takes half of the build's time.
@cache
def navigation(app):
    "The navigation of the page at the top"
    tree = global_toctree_for_doc(app.env, 'index', app.builder, collapse=False, titles_only=True, maxdepth=-1, includehidden=True)
    return get_navigation_tree(app.builder.render_partial(tree)['fragment'])

def navigation_of(app, page):
    "The navigation with links from another page; the page is marked, and its chapter unfolded"
    here, opens = f'"{app.builder.get_relative_uri("index", page)}"', f'"{page.partition("/")[0]}/index.html"'
    html = navigation(app)
    html = re.sub(rf'<li class="(toctree-l\d[\w -]*)">(?=<a [^>]*href={opens})', r'<li class="\1 current">', html)
    html = re.sub(rf'(href={opens}>[^<]*</a><input )', r'\1checked="" ', html)
    html = re.sub(rf'<li class="(toctree-l\d[\w -]*)">(?=<a [^>]*href={here})', r'<li class="\1 current current-page">', html)
    return re.sub(r'href="(?!#)', 'href="' + '../'*page.count('/'), html)

def setup(app):
    def before(app, page, template, context, tree): context['toctree'] = lambda **how: ''
    def after(app, page, template, context, tree): context['furo_navigation_tree'] = navigation_of(app, page)
    app.connect('html-page-context', before, priority=100) # Furo's has 500
    app.connect('html-page-context', after, priority=900)
