"""Build the documentation site: nbdev stages the notebooks, then Quarto renders them, or Sphinx where Quarto is not installed.

    python tools/build_site.py                      # into _docs/
    python tools/build_site.py --renderer sphinx --out /some/folder
"""
import argparse, gc, json, os, re, shutil, subprocess, sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'tools'))
from house import reading_order
from sphinx_pages import Page, write_source

def links_once(text):
    "Links whose words hold the name of a definition lead where their author says: nbdev has linked the name, too"
    return re.sub(r'\[([^\[\]]*)\[(`[^`\]]+`)\]\([^)\s]*\)([^\[\]]*)\]\(', r'[\1\2\3](', text)

def folded(source):
    "The list of a module's names, which is a cell with the directive `export`, as something that unfolds where it is long"
    first, _, names = source.partition('\n')
    if not first.startswith('#| export'): return source
    n = len(names.splitlines())
    return f'<details class="names"{" open"*(n<6)}>\n<summary>{n} public name{"s"*(n>1)}</summary>\n\n{names}\n\n</details>'

def finish(path):
    "Make of a page that nbdev has staged what both renderers read"
    book = json.loads(links_once(path.read_text(encoding='utf-8')))
    for o in book['cells']:
        if o['cell_type']=='markdown': o['source'] = folded(''.join(o['source']))
    path.write_text(json.dumps(book), encoding='utf-8')

def stage(cfg, n_workers):
    "Let nbdev execute what the pages need (exports, imports, `show_doc`) and write the pages to `_proc`"
    refresh_quarto_yml()
    order = reading_order(cfg.nbs_path)
    # imports that share a cell with other code would make staging run that code
    os.environ['PYTHONWARNINGS'] = 'error:Found cells containing imports'
    staged = proc_nbs(n_workers=n_workers, force=True)
    for o in staged.rglob('*.ipynb'): finish(o)
    gc.freeze() # at the end each of the notebooks' shells collects garbage, which takes minutes if all of it is looked at
    return staged, order

def render_quarto(staged, out, **kwargs):
    "Render with Quarto; its search needs a web server, everything else works from file://"
    subprocess.run(['quarto', 'render', str(staged), '--no-execute'], check=True)
    shutil.move(staged/get_config().doc_path.name, out)

def render_sphinx(staged, out, order, cfg):
    "Render with Sphinx, MyST-NB and Furo; every warning is an error"
    source = root/'_sphinx'
    write_source(staged, source, order, site_url=cfg.doc_url)
    subprocess.run([sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-E', '-b', 'html', '-d', str(source/'.doctrees'),
                    '-D', f'html_search_scorer={source/"search.js"}', '-c', str(root/'tools'/'site'), str(source), str(out)], check=True)

def write_llms(staged, out, order, cfg):
    "Write `llms.txt`: every page with its address and its subtitle, for programs that read text (llmstxt.org)"
    def line(notebook):
        page = Page(staged/notebook, staged, cfg.doc_url)
        return f"- [{page.front.get('title', notebook.stem)}]({page.site_url}{page.name}.html): {page.front.get('description', '')}"
    lines = [f'# {cfg.lib_name}', f'> {cfg.description}', line(Path('index.ipynb'))]
    lines += ['\n'.join([f'## {k}\n', *map(line, v)]) for k,v in order.items()]
    (out/'llms.txt').write_text('\n\n'.join(lines)+'\n', encoding='utf-8')

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--renderer', choices=['quarto', 'sphinx'], default='quarto' if shutil.which('quarto') else 'sphinx')
    parser.add_argument('--out', type=Path, help='folder of the site, made anew (default: _docs)')
    parser.add_argument('--workers', type=int, default=0, help='processes that execute notebooks (default: this one)')
    args = parser.parse_args()
    os.chdir(root)
    cfg = get_config()
    out = (args.out or cfg.doc_path).resolve()
    if out.exists() and any(out.iterdir()) and not (out/'index.html').exists(): parser.error(f'{out} is not empty and holds no site')
    shutil.rmtree(out, ignore_errors=True)
    staged, order = stage(cfg, args.workers)
    dict(quarto=render_quarto, sphinx=render_sphinx)[args.renderer](staged, out, order=order, cfg=cfg)
    write_llms(staged, out, order, cfg)
    print(f'{args.renderer} wrote {out/"index.html"}')

if __name__=='__main__': main() # staging starts processes that import this file
