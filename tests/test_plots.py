"Figures: no global state left behind, the same bytes every time, words that travel with the picture"
import matplotlib
import pytest

from compresscal.plots import GREY, Line, Picture, Strip, canvas, figure_size, look, plot_lines, plot_strips, style

def panels(n): return {f'{i}': {'docs': Strip((1., 2., 3.), 'docs', (0., 4.)), 'random': Strip((5.,), 'random')} for i in range(n)}

def test_style_is_local():
    matplotlib.rcParams['font.size'] = 13
    try:
        with pytest.raises(RuntimeError), style(): raise RuntimeError
        assert matplotlib.rcParams['font.size']==13
    finally: matplotlib.rcdefaults()

def test_pyplot_keeps_nothing():
    import matplotlib.pyplot as plt
    plot_strips(panels(3)).to_bytes()
    assert not plt.get_fignums()

@pytest.mark.parametrize('format', ['png', 'pdf', 'svg'])
def test_same_bytes(format):
    assert plot_strips(panels(3)).to_bytes(format)==plot_strips(panels(3)).to_bytes(format)

@pytest.mark.parametrize('format', ['png', 'svg'])
def test_words_travel(format):
    data = plot_strips(panels(1), caption='What & why').to_bytes(format)
    assert b'Means by row' in data and (b'What & why' in data or b'What &amp; why' in data)

@pytest.mark.parametrize('n', [1, 2, 3, 4, 7])
def test_any_number_of_panels(n):
    p = plot_strips(panels(n), xlabel={f'{i}': f'x{i}' for i in range(n)})
    assert [ax.get_xlabel() for ax in p.figure.axes]==[f'x{i}' for i in range(n)]

def test_single_values_and_equal_values_draw():
    plot_strips({'a': {'one': Strip((1.,)), 'same': Strip((2., 2., 2.))}}).to_bytes()

def test_printed_size():
    with style(): fig,_ = canvas(width='text', height=2)
    assert tuple(fig.get_size_inches())==(6.9, 2) and figure_size(2.)==(2., 1.24)

def test_more_kinds_than_colours():
    looks = look([str(i) for i in range(9)])
    assert len(looks)==10 and looks['7']==looks['0'] and looks['']['color']==GREY

def test_saves_by_suffix(tmp_path):
    p = plot_lines({'docs': Line([1, 2], [3, 4])}, 'bits', 'loss')
    assert p.save(tmp_path/'a.PNG').read_bytes().startswith(b'\x89PNG') and isinstance(p, Picture)
    with pytest.raises(ValueError, match='got \'xyz\''): p.save(tmp_path/'a.xyz')
    assert not (tmp_path/'a.xyz').exists()
