"""A table of all notebooks in reading order, as CSV: how much is said, exported and shown on each page.

    python tools/pages.py > pages.csv
"""
import csv, json, re, sys
from pathlib import Path
from house import nbs, reading_order

columns = ('page', 'words', 'exported_lines', 'largest_cell', 'figures')

def directives(source): return re.findall(r'^#\|\s*([\w-]+)', source, re.M)
def without_directives(source): return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
def is_figure(output): return any(k.startswith('image/') for k in output.get('data', {}))

def page_facts(
    path:Path, # A notebook
)->dict:       # By column: words of prose, lines that are exported, lines of the largest code cell, figures
    "What a page consists of; a list of public names is no prose"
    cells = [(o['cell_type'], ''.join(o['source']), o.get('outputs', [])) for o in json.loads(path.read_text(encoding='utf-8'))['cells']]
    prose = [source for kind,source,_ in cells if kind=='markdown' and not directives(source)]
    code = {source: len(without_directives(source).splitlines()) for kind,source,_ in cells if kind=='code'}
    return dict(words=sum(len(re.findall(r'\w[\w\'’-]*', o)) for o in prose),
                exported_lines=sum(n for source,n in code.items() if {'export', 'exports', 'exporti'} & {*directives(source)}),
                largest_cell=max(code.values(), default=0),
                figures=sum(is_figure(o) for *_,outputs in cells for o in outputs))

def rows():
    "A row for each notebook"
    pages = [Path('index.ipynb'), *sum(reading_order(nbs).values(), [])]
    return [dict(page=o.with_suffix('').as_posix())|page_facts(nbs/o) for o in pages]

if __name__=='__main__':
    out = csv.DictWriter(sys.stdout, columns, lineterminator='\n')
    out.writeheader()
    out.writerows(rows())
