"Names, numbers and identifiers: what counts as one, what supports it, and no input that breaks or delays the search."
import random, time
import pytest
from compresscal.summaries.mentions import MENTION_KINDS, _spelled, _value, mentions, unsupported

def found(text, kind): return [o.text for o in mentions(text) if o.kind==kind]

@pytest.mark.parametrize('text, names', [
    ('Yesterday Ann Low met Bob.', ['Ann', 'Low', 'Bob']), ('Ann met Bob.', ['Bob']), ('NASA met McKay.', ['NASA', 'McKay']), ('I met A. Low.', ['Low']), ('He said: "The end", and Then Ann.', ['Ann']),
    ('ALL CAPITALS HERE.', []), ('A Title Of Words', []), ('- First item\n- Second item of Bob', ['Bob']), ("it was Smith's.", ['Smith']), ('the U.S. army', ['U.S']), ('it is Dr. Low', ['Dr', 'Low']), ('今天 Ann', [])])
def test_names(text, names): assert found(text, 'name')==names

@pytest.mark.parametrize('text, identifiers', [
    ('call read_csv() or os.path.join on utf8', ['read_csv()', 'os.path.join', 'utf8']), ('use camelCase and _private, __init__', ['camelCase', '_private', '__init__']), ('e.g. this, i.e. that, in the U.S. too', []),
    ('see www.example.com now', ['www.example.com']), ('size() of 3d_array, 0x1F', ['size()', '3d_array', '0x1F']), ('a _ b __ c', []), ('an e-mail, a DataFrame', [])])
def test_identifiers(text, identifiers): assert found(text, 'identifier')==identifiers

@pytest.mark.parametrize('text, numbers', [
    ('1,000 and 1,00 and 3.5% of 20th', ['1,000', '1', '00', '3.5', '20th']), ('twenty-five or one hundred and five, one of them', ['twenty-five', 'one hundred and five']), ('3 million, $4bn, 5km', ['3 million', '4bn', '5km']),
    ('the 1990s, 10-20, 1.2.3, 5:30', ['1990s', '10', '20', '1.2.3', '5', '30']), ('sixteen and four', ['sixteen', 'four']), ('nineteen ninety', ['nineteen', 'ninety']), ('no numbers, hundred words', [])])
def test_numbers(text, numbers): assert found(text, 'number')==numbers

@pytest.mark.parametrize('same', [['1,000', '1000', '1000.0', 'one thousand', '1 thousand', '1k', '٠١٠٠٠'], ['2.5 million', '2,500,000', '2.5m'], ['25', 'twenty-five', 'twenty five', '25th'], ['105', 'one hundred and five', 'one hundred five'], ['3', 'third', 'three', '03', '3rd']])
def test_numbers_of_one_value_support_each_other(same):
    for a in same:
        for b in same:
            if b!='third': assert unsupported(f'it was {a} then', f'so it is {b}')==[]
    assert all(unsupported(f'it was {a} then', 'so it is 1,001 now') for a in same)

def test_spelled_numbers_read_as_they_are_said():
    ones = 'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen'.split()
    tens = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()
    def below_hundred(n): return ones[n] if n<20 else tens[n//10-2]+(f' {ones[n%10]}' if n%10 else '')
    def say(n):
        if n>=1000: return say(n//1000)+' thousand'+(f' {say(n%1000)}' if n%1000 else '')
        if n>=100: return ones[n//100]+' hundred'+(f' and {below_hundred(n%100)}' if n%100 else '')
        return below_hundred(n)
    for n in [*range(0, 1200), *range(1200, 999_999, 4567)]:
        told = say(n).split()
        assert _spelled(told)==(str(n), len(told)), say(n)

def test_values_are_exact_however_long():
    assert _value('9'*5000)=='9'*5000 and _value('0.'+'1'*5000, 6)=='111111.'+'1'*4994

def test_support():
    assert unsupported('the us army of SMITH', 'in the U.S. Mr Smith') and [o.text for o in unsupported('the us army of SMITH', 'so in the U.S. Mr Smith')]==['Mr']
    assert unsupported('from os import path; join(x)', 'call os.path.join()')==[] and len(unsupported('from OS import path; join(x)', 'call os.path.join()'))==1
    assert unsupported('read_csv reads', 'Call read_csv() now')==[]

pieces = ['Ann', 'the', '1,000', '3.5m', 'one', 'hundred', 'and', 'os.path', 'f()', '.', ',', '\n', '"', ':', '🙂', '今天', 'é', 'É', '_', '1.2.3', 'NASA', '٣', 'ı', 'İ', '²', '½', 'x'*40]
def test_a_text_supports_itself_and_mentions_are_where_they_are_said_to_be():
    g = random.Random(0)
    for n in range(400):
        text = g.choice([' ', '']).join(g.choice(pieces) for _ in range(n%25))
        some = mentions(text)
        assert unsupported(text, text)==[] and {o.kind for o in some}<={*MENTION_KINDS}
        assert all(text[o.start:o.end]==o.text for o in some) and all(a.end<=b.start for a,b in zip(some, some[1:]))

@pytest.mark.parametrize('unit', ['1,000', ',000', '1.', '1.1', '9', 'a.', 'a_', 'Ann ', 'one ', 'one hundred and ', '1 million ', '(', ' ', '"A', '1,00'])
def test_no_input_is_slow(unit):
    start = time.process_time()
    unsupported(unit*5_000, unit*5_000)
    assert time.process_time()-start<10

@pytest.mark.parametrize('source, summary, name', [(None, 'a', 'source'), ('a', None, 'summary'), (float('nan'), 'a', 'source'), ('a', ['a'], 'summary')])
def test_what_is_no_text_is_refused(source, summary, name):
    with pytest.raises(TypeError, match=f'`{name}` must be a text'): unsupported(source, summary)

def test_a_text_in_lower_case_has_no_names():
    assert not unsupported('Nothing.', 'then paul merson met nobody. he left.') and [o.text for o in unsupported('Nothing.', 'Then Paul Merson met nobody.')]==['Paul', 'Merson']
