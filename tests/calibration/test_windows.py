"Windows: as many as were wanted where there is text for them, and else what a source holds."
import pytest
from compresscal.calibration.sampling import TooLittleText, sample_sets
from compresscal.calibration.windows import Windows, count_text, draw_fitting, fit_windows

def texts(n, words): return [' '.join(f'w{i}x{j}' for j in range(words)) for i in range(n)]

def draw_from(source, tokenizer):
    def draw(o): return sample_sets(source, tokenizer, 1, o.n_sequences, o.length, rule=o.rule)[0]
    return draw

@pytest.mark.parametrize('source,wanted,fixed,expected', [
    (texts(20, 40), Windows(32, 128), (), ('window', 128)), # half of the windows or more: fewer of them
    (texts(8, 60), Windows(64, 128), (), ('pack', 128)), # documents long enough, but few
    (texts(12, 16), Windows(64, 128), (), ('pack', 64)), # short ones
    (texts(8, 60), Windows(64, 128), ('rule',), ('window', 128)),
    (texts(8, 60), Windows(30, 128), ('n_sequences',), ('pack', 64)),
    (texts(8, 60), Windows(64, 128), ('n_sequences', 'length'), None),
    (texts(8, 60), Windows(64, 128), ('n_sequences', 'rule'), None)])
def test_what_fits_can_be_drawn(tiny_tokenizer, source, wanted, fixed, expected):
    fits = fit_windows(count_text(source, tiny_tokenizer), wanted, fixed)
    assert (fits and (fits.rule, fits.length))==expected
    if fits: assert len(draw_from(source, tiny_tokenizer)(fits))==fits.n_sequences
    for k in fixed: assert fits is None or getattr(fits, k)==getattr(wanted, k)

@pytest.mark.parametrize('rule', ['window', 'pack', 'pad'])
@pytest.mark.parametrize('n', range(1, 30, 7))
@pytest.mark.parametrize('words', [1, 7, 50])
def test_no_more_fits(tiny_tokenizer, n, words, rule):
    "What is said to fit can be drawn, and one window more can not"
    source, wanted = texts(n, words), Windows(10**4, 64, rule)
    fits, draw = fit_windows(count_text(source, tiny_tokenizer), wanted, ('length', 'rule')), draw_from(source, tiny_tokenizer)
    if fits: assert len(draw(fits))==fits.n_sequences
    with pytest.raises(TooLittleText): draw(Windows((fits.n_sequences if fits else 0)+1, 64, rule))

def test_copies_and_blank_texts_are_not_counted(tiny_tokenizer):
    source = texts(3, 20)
    assert count_text(source*2+[' '], tiny_tokenizer).lengths==count_text(source, tiny_tokenizer).lengths

def test_what_was_asked_for_is_not_changed_without_a_word(tiny_tokenizer):
    source, wanted = texts(8, 60), Windows(64, 128)
    def draw(o): return sample_sets(source, tiny_tokenizer, 1, o.n_sequences, o.length, rule=o.rule)[0]
    def count(): return count_text(source, tiny_tokenizer)
    drawn, said = draw_fitting('calibration text', draw, wanted, count)
    assert len(drawn)>16 and f"{len(drawn)} windows of 128 tokens by rule 'pack'" in said and 'too little text for 64 of 128' in said
    drawn, said = draw_fitting('calibration text', draw, Windows(4, 128), count)
    assert len(drawn)==4 and said=="calibration text: 4 windows of 128 tokens by rule 'window'"
    with pytest.raises(TooLittleText, match="too little text") as e:
        draw_fitting('calibration text', draw, wanted, count, ('n_sequences', 'length', 'rule'))
    assert "rule 'pack'" in e.value.__notes__[0] and e.value.fits.rule=='pack' and len(draw(e.value.fits))==e.value.fits.n_sequences
    with pytest.raises(TooLittleText) as e: draw_fitting('text', draw_from(['a'], tiny_tokenizer), wanted, lambda: count_text(['a'], tiny_tokenizer))
    assert e.value.fits is None
