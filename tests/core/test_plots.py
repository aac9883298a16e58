"Figures: no global state left behind, the same bytes every time, words that travel with the picture"
import matplotlib
import pytest

from compresscal.core.plots import (GREY, Line, Picture, Strip, canvas, draw_heat, figure_size, look, plot_heat, plot_lines, plot_points,
                                    plot_strips, style)

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

def shapes():
    yield plot_strips(panels(2), dict.fromkeys('01', 2.), best='low')
    yield plot_heat({'a': {'one': {'docs': 1.5, 'random:docs': 2.}, 'two': {'code': .5}}}, best='low', log=True)
    yield plot_points({'a': {'docs': Line([1, 2], [3, 4]), 'code': Line([1], [2])}}, 'perplexity', 'accuracy', {'a': (1, 2)})

def test_newer_shapes_keep_the_rules():
    "The same bytes in each format, nothing left in pyplot, words inside"
    import matplotlib.pyplot as plt
    before = dict(matplotlib.rcParams)
    for p,q in zip(shapes(), shapes()):
        for format in ('png', 'pdf', 'svg'): assert p.to_bytes(format)==q.to_bytes(format)
        assert p.alt.startswith(('Means', 'Values'))
    assert not plt.get_fignums() and dict(matplotlib.rcParams)==before

def order(picture): return [[o.get_text() for o in ax.get_yticklabels()] for ax in picture.figure.axes]

def test_ranking_orders_each_panel_its_own_way():
    rows = {k: Strip(v) for k,v in dict(a=(3.,), b=(1., 2.), lost=(float('nan'),), c=(9.,), gone=(1., float('inf'))).items()}
    p = plot_strips({'error': rows, 'accuracy': rows}, xlabel=dict(error='e', accuracy='a'), best=dict(error='low', accuracy='high'))
    assert order(p)==[['b', 'a', 'c', 'lost', 'gone'], ['c', 'a', 'b', 'lost', 'gone']]
    assert [o.get_text() for o in p.figure.axes[0].texts]==['mean nan', 'mean inf']

def cells(table, **kwargs):
    with style():
        _,(ax,) = canvas()
        draw_heat(ax, table, **kwargs)
    return {(o.get_position()[1], o.get_position()[0]): o for o in ax.texts}

def test_heat_writes_every_value_once():
    found = cells({'a': {'x': 1., 'y': 3.}, 'b': {'y': 2., 'x': 2.}, 'c': {'z': 5.}}, best='high', format='.0f')
    assert {k: o.get_text() for k,o in found.items()}=={(0, 0): '1', (0, 1): '3', (1, 1): '2', (1, 0): '2', (2, 2): '5'}
    assert {k for k,o in found.items() if o.get_weight()=='bold'}=={(0, 1), (1, 0), (1, 1)} # a tie has two

def test_heat_text_can_be_read():
    "Letters stand out from their cell by a contrast of at least 4.5, as WCAG 2 asks"
    light = lambda c: sum(w*(v/12.92 if v<=.04045 else ((v+.055)/1.055)**2.4) for w,v in zip((.2126, .7152, .0722), matplotlib.colors.to_rgb(c)))
    with style():
        _,(ax,) = canvas()
        draw_heat(ax, {str(i): {'x': float(i)} for i in range(100)}|{'inf': {'x': float('inf')}})
    for patch,text in zip(ax.patches, ax.texts):
        a,b = sorted((light(patch.get_facecolor()), light(text.get_color())))
        assert (b+.05)/(a+.05)>=4.5, text.get_text()

def test_long_column_names_are_turned():
    turned = lambda names: plot_heat({'': {'row': dict.fromkeys(names, 1.)}}).figure.axes[0].get_xticklabels()[0].get_rotation()
    assert turned(['docs', 'code', 'self'])==0 and turned(['docs', 'code', 'random:docs', 'self:t_initial=2'])>0
