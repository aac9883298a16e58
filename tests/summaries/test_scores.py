"What `Scores` keeps and refuses, beyond what its notebook shows."
import json
import numpy as np
import pandas as pd
import pytest
from compresscal.summaries.scores import Judge, Scores, check_pairs

def test_values_are_a_copy():
    mine = np.array([.5, 1.])
    s = Scores('x', mine, (0, 1))
    mine[0] = 0
    assert s.values[0]==.5 and not s.values.flags.writeable
    frame = s.to_pandas()
    frame.loc[0, 'x'] = 9
    assert s.values[0]==.5

@pytest.mark.parametrize('values', [[1, 2], (True, False), np.array([1, 2], np.float32), pd.Series([1., 2.], index=[7, 9]), [None, 1.]])
def test_what_counts_as_numbers(values): assert Scores('x', values).values.dtype==np.float64

@pytest.mark.parametrize('values', [5, 'ab', ['a'], [[1], [2]], [1, [2]], {'a': 1}])
def test_what_does_not(values):
    with pytest.raises((TypeError, ValueError), match='`values`'): Scores('x', values)

def test_nothing_is_printed_wrong_in_markdown():
    s = Scores('a|b', [1.], settings=dict(prompt='one\ntwo|three'), notes=('a note',))
    lines = s._repr_markdown_().splitlines()
    assert all(o.count('|')-o.count('\\|')==3 for o in lines if o.startswith('|')) and lines[-1]=='a note'

def test_settings_are_written_as_json():
    s = Scores('x', [1.], settings={'model': 'm', 'limits': [1, None], 'weight': 7.})
    assert json.loads(json.dumps(dict(s.settings)))==s.settings

def test_pairs_take_any_iterable():
    assert check_pairs(pd.Series(['a']), (o for o in ['b']))==(['a'], ['b'])
    for wrong in (None, 3, {'a': 'b'}, b'ab'):
        with pytest.raises(TypeError, match='`sources`'): check_pairs(wrong, ['b'])

def test_no_torch():
    import subprocess, sys
    code = "import sys, compresscal.summaries.scores; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_a_judge_is_known_by_what_it_has(): assert not isinstance(Scores('x', []), Judge)
