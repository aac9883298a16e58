"Sentences: spans that fit their text whatever it holds, the trained model where it is, and no slow input."
import random, time
import pytest
from compresscal.text.sentences import SPLITTERS, _trained, sentence_spans, split_sentences, splitter_name, word_spans, words

pieces = ['word', 'The', 'Dr.', 'end.', '3.5', '1.', 'U.S.', 'e.g.', 'No.', '5', '"Yes!"', '(so.)', '...', '?', '!', '\n', '\n\n', '\n \n', '\t', 'über', 'Ä.', '今天。', '。', '“真？”', '🙂', 'है।', '؟', '\r\n', '\x0c', '\u3000', 'x'*50]

@pytest.mark.parametrize('splitter', ['rules', 'lines'])
@pytest.mark.parametrize('joint', [' ', ''])
def test_spans_are_in_order_and_lose_nothing_but_blanks(splitter, joint):
    g = random.Random(0)
    for n in range(150):
        text = joint.join(g.choice(pieces) for _ in range(n%40))
        spans = sentence_spans(text, splitter)
        ends = [0, *(o for s in spans for o in s), len(text)]
        assert ends==sorted(ends)
        assert not any(text[a:b].strip() for a,b in zip(ends[::2], ends[1::2]))
        assert all(text[a:b] and text[a:b]==text[a:b].strip() for a,b in spans)
        assert split_sentences(text, splitter)==[text[a:b] for a,b in spans]

@pytest.mark.parametrize('text, expected', [
    ("Mr. Low and Mrs. High met at 5 p.m. in St. Ives. They left.", 2), ("He is from the U.S. The firm is not.", 2), ("The U.S. Navy left.", 1),
    ("It rose 3.5 per cent. It fell 2. Then it rose.", 3), ("Is it so? Yes! Good.", 3), ("He said: \"I left. She stayed.\" Then he went.", 3),
    ("He said (it was late.) he left.", 1), ("A title\n\nThe text goes on\nin a second line.", 2), ("See www.example.com. It is good.", 2),
    ("1. One.\n2. Two.", 2), ("Wait ... what? No.", 2), ("no stop", 1), ("", 0), (" \n\t", 0), ("...", 1), ("🙂 🙃. Good.", 1), ("Good. 🙂", 1)])
def test_sentences_that_a_reader_would_count(text, expected): assert len(split_sentences(text))==expected

def test_a_blank_line_ends_a_sentence_and_a_line_does_not():
    for blank in ('\n\n', '\r\n\r\n', '\n \t\n', '\n\n\n\n'): assert split_sentences(f'One{blank}two')==['One', 'two']
    assert split_sentences('One\ntwo\r\nthree')==['One\ntwo\r\nthree']

@pytest.mark.parametrize('unit', ['. ', '1. ', '.', '"', '\n', ' ', '\n ', 'a. 1. ', '。', '”', 'a', '.\n\n'])
def test_no_input_is_slow(unit):
    start = time.perf_counter()
    sentence_spans(unit*8_000)
    assert time.perf_counter()-start<10

def test_a_text_of_100000_words_takes_seconds():
    text = 'The cat sat on Dr. Smith and slept all day. '*10_000
    start = time.perf_counter()
    assert len(sentence_spans(text))==10_000
    assert time.perf_counter()-start<10

def test_the_trained_model_says_what_to_type_where_it_is_missing(monkeypatch):
    import nltk
    monkeypatch.setattr(nltk.data, 'path', [])
    _trained.cache_clear()
    with pytest.raises(LookupError, match='python -m nltk.downloader punkt_tab'): split_sentences('A text.', 'punkt')
    _trained.cache_clear()

def test_the_trained_model_is_what_nltk_calls_sentences():
    nltk = pytest.importorskip('nltk')
    text = "Dr. Smith paid 3.5 million. He left.\n\nA title\n\nThen?"
    try: expected = nltk.sent_tokenize(text)
    except LookupError: pytest.skip("NLTK's trained model is not installed: python -m nltk.downloader punkt_tab")
    assert split_sentences(text, 'punkt')==expected

def test_a_splitter_that_repeats_a_sentence_finds_both(): assert sentence_spans('a b a', str.split)==[(0, 1), (2, 3), (4, 5)]

@pytest.mark.parametrize('splitter, error', [(lambda t: ['not in it'], ValueError), (lambda t: ['b', 'a'], ValueError), (lambda t: [None], TypeError)])
def test_a_function_that_changes_the_text_is_refused(splitter, error):
    with pytest.raises(error, match='`splitter` must return'): sentence_spans('a b', splitter)

@pytest.mark.parametrize('splitter', ['', 'nltk', None, 1])
def test_an_unknown_splitter_is_refused(splitter):
    with pytest.raises(ValueError, match="`splitter` must be one of 'rules'"): split_sentences('a', splitter)
    with pytest.raises(ValueError, match="`splitter` must be one of 'rules'"): splitter_name(splitter)

def test_a_splitter_has_a_name():
    class Own:
        def __call__(self, text): return [text]
    assert [splitter_name(o) for o in SPLITTERS]==['rules', 'punkt', 'lines']
    assert splitter_name(Own()).endswith('Own') and splitter_name(str.split).endswith('str.split')

@pytest.mark.parametrize('text', [None, b'bytes', 1, ['a']])
def test_only_text_has_sentences(text):
    with pytest.raises(TypeError, match='`text` must be a str'): sentence_spans(text)

def test_a_word_has_letters_or_digits_and_nothing_between_words_has():
    g = random.Random(5)
    for _ in range(200):
        text = ''.join(g.choice(pieces+[' ', '-', 'e', '_', 'ี', 'ก', 'が', '한', 'ा', '\u0301', '²', "'"]) for _ in range(12))
        ends = [0, *(o for s in word_spans(text) for o in s), len(text)]
        assert ends==sorted(ends) and not any(c.isalnum() for a,b in zip(ends[::2], ends[1::2]) for c in text[a:b])
        assert all(any(map(str.isalnum, o)) for o in words(text)) and len(words(text))==len(word_spans(text))

@pytest.mark.parametrize('text, expected', [('हिन्दी में', 2), ('한국어 문장', 2), ('مرحبا بِكُم', 2), ('שָׁלוֹם', 1), ('今天', 2), ('ありがとう', 5), ('naïve nai\u0308ve', 2), ('a_b', 2), ('x86 3.5', 3), ('😀😀', 0)])
def test_words_in_other_scripts(text, expected): assert len(words(text))==expected
