"What all commands share: places to write to are looked at before work begins"
import os, tempfile
from pathlib import Path

import pytest

from compresscal.commands.console import check_out_file, check_out_folder

def test_looking_makes_nothing(tmp_path):
    assert check_out_file(tmp_path/'a'/'b'/'x.json')==tmp_path/'a'/'b'/'x.json'
    assert check_out_folder(tmp_path/'a'/'sets', new=True)==tmp_path/'a'/'sets'
    assert not os.listdir(tmp_path)

def test_home_is_meant(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert check_out_file('~/x.json')==tmp_path/'x.json' and check_out_folder('~/sets')==tmp_path/'sets'

def test_what_is_there_decides(tmp_path):
    (tmp_path/'file').touch()
    (tmp_path/'empty').mkdir()
    (tmp_path/'lost').symlink_to(tmp_path/'nowhere')
    assert check_out_file(tmp_path/'file')==tmp_path/'file'
    assert check_out_folder(tmp_path/'empty', new=True)==tmp_path/'empty' and check_out_folder(tmp_path)==tmp_path
    for check,out,how,says in ((check_out_file, tmp_path, {}, 'which is a folder'), (check_out_file, f'{tmp_path}/a/', {}, 'which is a folder'),
                               (check_out_file, tmp_path/'file', dict(new=True), 'a new file'), (check_out_folder, tmp_path/'file', {}, 'which is a file'),
                               (check_out_folder, tmp_path, dict(new=True), 'new or empty'), (check_out_folder, tmp_path/'lost', {}, 'which is a file')):
        with pytest.raises(ValueError, match=f'`page` must be .*{says}'): check(out, 'page', **how)

def test_below_a_file(tmp_path):
    (tmp_path/'file').touch()
    for check in (check_out_file, check_out_folder):
        with pytest.raises(NotADirectoryError, match='cannot write') as e: check(tmp_path/'file'/'a'/'x')
        assert e.value.filename==str(tmp_path/'file')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='permissions of POSIX systems')
def test_a_closed_folder():
    "As root nothing is forbidden, so a child process becomes an ordinary user"
    with tempfile.TemporaryDirectory() as d:
        for folder,mode in ((Path(d), 0o755), (Path(d)/'closed', 0o555)): folder.mkdir(exist_ok=True); folder.chmod(mode)
        if not (pid := os.fork()):
            refused = 0
            try:
                if os.geteuid()==0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
                for check,out in ((check_out_file, 'x.json'), (check_out_file, 'a/x.json'), (check_out_folder, 'a'), (check_out_folder, '')):
                    try: check(Path(d)/'closed'/out)
                    except PermissionError as e: refused += e.filename==d+'/closed'
            finally: os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==4
