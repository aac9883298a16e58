"""What studies have computed, kept in a few files: to go on on another machine, and for the pages of `nbs/studies` to read.

`python benchmarks/records.py pack WORK RECORDS` writes what is new below WORK, where `evidence.py` keeps its studies, into one
more archive for each study, RECORDS/STUDY/000.tar.xz and so on; `unpack WORK RECORDS` puts everything back, without replacing
what is there. Where the name of the folder WORK stands in a file, the archive has `{WORK}`."""
import argparse, io, tarfile
from collections import defaultdict
from pathlib import Path

KEPT = ('cells', 'provenance', 'failures', 'sets', 'written') # folders of a study, and text that a model wrote
INDEX = 'index.json' # of a study: it grows, so each archive has its own
PLACE = b'{WORK}'

def archives(records):
    "The archives of each study, the latest first: it knows the whole index"
    found = defaultdict(list)
    for o in sorted(Path(records).glob('*/*.tar.xz'), reverse=True): found[o.parent.name].append(o)
    return found

def names_in(path):
    with tarfile.open(path) as archive: return {o.name for o in archive if o.isfile()}

def files_of(work):
    "Files below a folder that are worth keeping: for each study its files by name"
    found = defaultdict(dict)
    for o in sorted(Path(work).rglob('*')):
        name = o.relative_to(work)
        if o.is_file() and (({*KEPT} & {*name.parts} and not o.name.startswith('.')) or name.name==INDEX): found[name.parts[0]][name.as_posix()] = o
    return found

def _placed(work): return str(Path(work).resolve()).encode()

def pack(work, records)->int:
    "Write what no archive has into new ones; how many files that were"
    known, total = archives(records), 0
    for study,files in files_of(work).items():
        old = set().union(*map(names_in, known[study]))
        new = {k: v for k,v in files.items() if k not in old or v.name==INDEX}
        if all(v.name==INDEX for v in new.values()): continue
        path = Path(records)/study/f'{len(known[study]):03}.tar.xz'
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, 'x:xz') as archive:
            for name,file in new.items(): _add(archive, name, file.read_bytes().replace(_placed(work), PLACE))
        total += len(new)
    return total

def _add(archive, name, content):
    "One file, with nothing of the machine that packs"
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))

def unpack(work, records)->int:
    "Put back what is not there; how many files that were"
    n = 0
    for path in sum(archives(records).values(), []):
        with tarfile.open(path) as archive:
            for o in archive:
                if o.isfile() and not (Path(work)/o.name).exists():
                    o.mode = 0o644
                    archive.extract(o, work, filter='data')
                    _put_place(Path(work)/o.name, work)
                    n += 1
    return n

def _put_place(file, work):
    content = file.read_bytes()
    if PLACE in content: file.write_bytes(content.replace(PLACE, _placed(work)))

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('what', choices=['pack', 'unpack'])
    p.add_argument('work', type=Path)
    p.add_argument('records', type=Path)
    o = p.parse_args(args)
    n = dict(pack=pack, unpack=unpack)[o.what](o.work, o.records)
    print(f'{n:,} files')

if __name__=='__main__': main()
