"""Write README.md from nbs/index.ipynb, through nbdev's processors. Needs no Quarto.

    python tools/build_readme.py
"""
import base64, os, re
from pathlib import Path
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs, insert_warning

root = Path(__file__).resolve().parents[1]
warning = '<!-- Made from nbs/index.ipynb by tools/build_readme.py: edit that. -->'
images = Path('nbs/images') # where outputs that are pictures go

class ReadmeFilter(FilterDefaults):
    "nbdev's processors for a page that is read in the repository: nothing to execute, no links to a site"
    def procs(self): return [o for o in super().procs() if o not in (add_links, add_show_docs, exec_show_docs, insert_warning)]

def join(text): return text if isinstance(text, str) else ''.join(text)

def link(m):
    "Paths relative to the notebook as paths relative to the README"
    return m[0] if re.match(r'[a-z]+:|#|/', m[1]) else '](' + os.path.normpath(f'nbs/{m[1]}') + ')'

def output(out, name, files):
    "One output as Markdown; a picture goes into `files` under `name`"
    if out['output_type']=='stream': return '    '+join(out['text']).rstrip().replace('\n', '\n    ')
    data = {k: join(v) for k,v in out['data'].items()}
    if 'image/png' in data:
        files[images/f'{name}.png'] = base64.b64decode(data['image/png'])
        return f'![]({images}/{name}.png)'
    if 'text/markdown' in data: return data['text/markdown'].strip()
    return '    '+data['text/plain'].rstrip().replace('\n', '\n    ')

def readme(notebook):
    "The README's text, and the bytes of each picture that it shows"
    nb = read_nb(notebook)
    FilterDefaults.__call__(ReadmeFilter(), nb)
    front, parts, files = nb.frontmatter_, [warning], {}
    parts += [f"# {front['title']}", f"> {front['description']}"]
    for i,c in enumerate(nb.cells):
        if c.cell_type=='markdown' and (source := c.source.strip()): parts.append(re.sub(r'\]\(([^)\s]+)\)', link, source))
        elif c.cell_type=='code':
            options = dict(re.findall(r'^#\|\s*([\w-]+):\s*(.*)$', c.source, re.M))
            source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
            if options.get('include')=='false' or not (source or c.outputs): continue
            if options.get('echo')!='false': parts.append(f'```python\n{source}\n```')
            if options.get('output')!='false': parts += [output(o, f'readme-{c.id}', files) for o in c.outputs]
            if (alt := options.get('fig-alt') or options.get('fig-cap')): parts[-1] = parts[-1].replace('![]', f'![{alt.strip(chr(34))}]')
    return '\n\n'.join(parts)+'\n', files

if __name__=='__main__':
    cfg = get_config(root)
    text, files = readme(cfg.nbs_path/cfg.readme_nb)
    for path, data in {Path('README.md'): text.encode(), **files}.items():
        (root/path).parent.mkdir(exist_ok=True)
        (root/path).write_bytes(data)
