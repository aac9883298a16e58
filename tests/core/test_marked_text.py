"Marked texts: no character is lost or let through, whatever the text and however the marks lie."
import random, re
from html.parser import HTMLParser
import pytest
from compresscal.core.marked_text import COLOURS, Mark, MarkedText, MarkedTexts, flatten

def random_marks(g, n, many=8):
    return [Mark(a, g.randint(a+1, min(n, a+15)), g.choice(['', '1', '2', '3']), g.choice(list(COLOURS)), g.choice(['', 'note', 'other'])) for _ in range(g.randint(0, many)) for a in [g.randrange(n)]]

def test_pieces_say_of_each_character_what_the_marks_say():
    g = random.Random(0)
    for _ in range(300):
        marks = random_marks(g, 40)
        pieces = flatten(marks)
        assert all(a.end<=b.start for a,b in zip(pieces, pieces[1:]))
        for i in range(40):
            over,piece = [o for o in marks if o.start<=i<o.end],[o for o in pieces if o.start<=i<o.end]
            assert len(piece)==bool(over)
            if over:
                assert set(filter(None, piece[0].label.split(', ')))=={o.label for o in over if o.label}
                assert set(filter(None, piece[0].note.split('\n')))=={o.note for o in over if o.note}
                assert piece[0].colour in {o.colour for o in over}

def test_flattening_twice_changes_nothing():
    g = random.Random(1)
    for _ in range(50):
        once = flatten(random_marks(g, 30))
        assert flatten(once)==once

class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text,self.tags,self.sup = '',[],0
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.sup += tag=='sup'
    def handle_endtag(self, tag): self.sup -= tag=='sup'
    def handle_data(self, data): self.text += '' if self.sup else data

letters = 'ab <>&"\'`\n\t/é漢🙂]['
def test_html_shows_the_text_as_it_is_and_nothing_else():
    g = random.Random(2)
    for _ in range(200):
        text = ''.join(g.choice(letters) for _ in range(30))
        reader = Reader()
        reader.feed(MarkedText('', text, random_marks(g, 30)).to_html())
        assert reader.text==text and {*reader.tags}<={'div', 'mark', 'sup'}

def test_plain_text_keeps_every_character():
    g = random.Random(3)
    for _ in range(200):
        text = ''.join(g.choice('ab c\n') for _ in range(30))
        assert re.sub(r'>>>|<<<(\[[123, ]+\])?', '', repr(MarkedText('', text, random_marks(g, 30))))==text

@pytest.mark.parametrize('context', [0, 1, 3, 100, None])
def test_context_leaves_out_only_what_is_far(context):
    g = random.Random(4)
    for _ in range(100):
        words = [f'w{i}' for i in range(60)]
        text,marked = ' '.join(words),sorted(g.sample(range(60), g.randint(1, 4)))
        at = {w: text.index(f' {w} ')+1 if 0<i<59 else text.index(w) for i,w in enumerate(words)}
        shown = MarkedText('', text, [Mark(at[f'w{i}'], at[f'w{i}']+len(f'w{i}')) for i in marked], context)
        kept = {int(o) for t,_ in shown.parts() if t for o in re.findall(r'w(\d+)', t)}
        near = {i for i in range(60) if context is None or min(abs(i-j) for j in marked)<=context}
        assert near<=kept and len(kept-near)<=len(marked)+1 # one word more is as short as the dots
        assert [o for o in shown.parts() if o[0] is None] or len(kept)==60

def test_notes_and_titles_are_escaped():
    page = MarkedTexts([MarkedText('<b>"t"', 'x', [Mark(0, 1, '<u>', note='a"b<c>\n')], legend=dict(red='<s>'))]).to_html()
    reader = Reader()
    reader.feed(page)
    assert not {'u', 's', 'c'} & {*reader.tags} and reader.tags.count('b')==1 and 'title="a&quot;b&lt;c&gt;' in page

@pytest.mark.parametrize('make, error', [(lambda: Mark(-1, 2), '0 or more'), (lambda: Mark(2, 1), 'below `end`'), (lambda: Mark(0, 1, colour=''), '`colour` must be one of'),
    (lambda: MarkedText('', '', [Mark(0, 1)]), 'within the 0 characters'), (lambda: MarkedText('', 'a', [], -2), '`context` must be')])
def test_wrong_marks_are_refused(make, error):
    with pytest.raises(ValueError, match=error): make()

def test_a_terminal_and_a_page_show_it_and_do_not_obey():
    nasty = 'a|b<i>\x1b[31m'
    found = MarkedTexts([MarkedText(nasty, f'One {nasty} two\nthree', [Mark(0, 3, nasty, note=nasty)], legend=dict(yellow=nasty))])
    assert '\x1b' not in repr(found) and '\n' in repr(found) and '\x1b' not in found.to_html() and '<i>' not in found.to_html()
