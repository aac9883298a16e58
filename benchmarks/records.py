"""What studies have computed, kept in a few files: to go on on another machine, and for the pages of `nbs/studies` to read.

`python benchmarks/records.py pack WORK RECORDS` writes what is new below WORK, where `evidence.py` keeps its studies, into one
more archive for each study, RECORDS/STUDY/000.tar.xz and so on; `unpack WORK RECORDS` puts everything back, without replacing
what is there. Where the name of the folder WORK stands in a file, the archive has `{WORK}`."""
import argparse
from collections import defaultdict
from pathlib import Path
from compresscal.core.archives import add_archive, read_archives

KEPT = ('cells', 'provenance', 'failures', 'sets', 'written') # folders of a study, and text that a model wrote
INDEX = 'index.json' # of a study
PLACE = b'{WORK}'

def files_of(work):
    "Files below a folder that are worth keeping: for each study its files by name"
    found = defaultdict(dict)
    for o in sorted(Path(work).rglob('*')):
        name = o.relative_to(work)
        kept = {*KEPT} & {*name.parts} and not o.name.startswith('.')
        if o.is_file() and (kept or name.name==INDEX): found[name.parts[0]][name.as_posix()] = o
    return found

def _placed(work): return str(Path(work).resolve()).encode()

def pack(work, records)->int:
    "Write what is new or changed into one more archive for each study; how many files that were"
    def content(file): return file.read_bytes().replace(_placed(work), PLACE)
    studies = {k: {name: content(o) for name,o in files.items()} for k,files in files_of(work).items()}
    return sum(len(add_archive(files, Path(records)/study)) for study,files in studies.items())

def unpack(work, records)->int:
    "Put back what is not there; how many files that were"
    n = 0
    for folder in sorted(o for o in Path(records).iterdir() if o.is_dir()):
        for name,content in read_archives(folder).items():
            file = Path(work)/name
            if file.exists(): continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.replace(PLACE, _placed(work)))
            n += 1
    return n

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=['pack', 'unpack'])
    p.add_argument('work', type=Path)
    p.add_argument('records', type=Path)
    o = p.parse_args(args)
    n = dict(pack=pack, unpack=unpack)[o.what](o.work, o.records)
    print(f'{n:,} files')

if __name__=='__main__': main()
