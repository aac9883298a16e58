"""What unfinished studies have computed, kept in a few files: so that a study begun on one machine goes on on another.

`python benchmarks/records.py pack WORK RECORDS` writes what is new below WORK, where `evidence.py` keeps its studies, into one
more archive in RECORDS; `unpack WORK RECORDS` puts everything back. What is there is not replaced."""
import argparse, tarfile
from pathlib import Path

KEPT = ('cells', 'provenance', 'failures', 'sets', 'written') # folders of a study, and text that a model wrote

def archives(records): return sorted(Path(records).glob('*.tar.xz'))

def names_in(path):
    with tarfile.open(path) as archive: return {o.name for o in archive if o.isfile()}

def files_of(work):
    "Files below a folder that are worth keeping, by name"
    found = {o.relative_to(work).as_posix(): o for o in sorted(Path(work).rglob('*')) if o.is_file()}
    return {k: v for k,v in found.items() if {*KEPT} & {*Path(k).parts} and not v.name.startswith('.')}

def pack(work, records)->int:
    "Write what no archive has into a new one; how many files that were"
    known = set().union(*map(names_in, archives(records)))
    new = {k: v for k,v in files_of(work).items() if k not in known}
    if not new: return 0
    Path(records).mkdir(parents=True, exist_ok=True)
    path = Path(records)/f'{len(archives(records)):03}.tar.xz'
    with tarfile.open(path, 'x:xz') as archive:
        for name,file in new.items(): archive.add(file, name, filter=_plain)
    return len(new)

def _plain(info):
    "Nothing of the machine that packs"
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ''
    return info

def unpack(work, records)->int:
    "Put back what is not there; how many files that were"
    n = 0
    for path in archives(records):
        with tarfile.open(path) as archive:
            new = [o for o in archive if o.isfile() and not (Path(work)/o.name).exists()]
            archive.extractall(work, new, filter='data')
            n += len(new)
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
