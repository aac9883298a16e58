"Prompts: the instruction always whole, one beginning token, the document cut where it must be and read as text only."
import random, time
import pytest
from compresscal.models.loading import load_tokenizer
from compresscal.summaries.prompts import PROMPTS, SYSTEM, Prompt, around, as_prompt, fit, prompt_opening_ids

llama3 = ("{% for m in messages %}{% if loop.first %}{{bos_token}}{% endif %}<|head|>{{m['role']}}<|/head|>\n\n{{m['content'] | trim}}<|eot|>{% endfor %}"
          "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}")
refuses = "{{bos_token}}{% for m in messages %}{% if m.role=='system' %}{{raise_exception('System role not supported')}}{% endif %}<turn>{{m.role}}\n{{m.content}}<end>\n{% endfor %}<turn>model\n"
drops = "{% for m in messages if m.role!='system' %}### {{m.role}}\n{{m.content}}\n{% endfor %}### assistant\n"
thinks = "{% for m in messages %}[{{m.role}}]{{m.content}}{% endfor %}[assistant]{% if not enable_thinking|default(true) %}(no thoughts){% endif %}"
texts = ['A plain line about modules. '*40, 'Zeile für Zeile – naïve Übermut. '*40, '这是一个没有空格的长文本。'*60, '🙂👩‍👩‍👧 emoji and words '*40, 'def f(x):\n    return {x: "{y}"}\n\n'*40, 'word'*300, 'a\n\n\n\n\n\nb '*80]

def chatty(template):
    tokenizer = load_tokenizer()[1]
    tokenizer.chat_template = template
    return tokenizer

@pytest.fixture(scope='module')
def embedded(): return load_tokenizer()[1]

@pytest.mark.parametrize('template', [None, llama3, refuses, drops, thinks], ids=['none', 'llama3', 'refuses', 'drops', 'thinks'])
@pytest.mark.parametrize('name', PROMPTS)
def test_the_instruction_is_never_cut(name, template):
    tokenizer = chatty(template)
    before, after, chat = around(name, tokenizer)
    assert chat==(template is not None) and (PROMPTS[name].system is None or SYSTEM in before)
    least = len(fit(name, tokenizer, '', 10**6))
    for text in texts:
        for room in (least+1, least+2, least+17, least+60, 10**6):
            found = fit(name, tokenizer, text, room)
            read = tokenizer.decode(found.ids)
            assert len(found)<=room and text.startswith(found.document) and found.truncated==(found.document!=text.rstrip())
            assert read.removeprefix('<s>')==(before+found.document+after).removeprefix('<s>')
            assert found.ids.count(tokenizer.bos_token_id)==1==found.ids.index(tokenizer.bos_token_id)+1
        assert not found.truncated

def test_no_word_is_cut_and_no_room_is_wasted(embedded):
    rng = random.Random(0)
    text = ' '.join(rng.choice(['module', 'x', 'configuration', 'returns', 'tokenization', '1234']) for _ in range(500))
    for room in range(40, 200, 7):
        found = fit('document', embedded, text, room)
        assert text[len(found.document)]==' '
        longer = text[:text.find(' ', len(found.document)+1)]
        assert len(fit('document', embedded, longer, 10**6))>room-2 # one more word would not have fitted, but for a token at the seam

def test_a_tokenizer_that_marks_words_at_their_beginning(shared):
    tokenizer = load_tokenizer(shared/'data'/'model_stories260K'/'transformers')[1]
    text = 'Once upon a time there was a little girl named Lily. '*30
    found = fit('Sum up: {document}\nSummary:', tokenizer, text, 100)
    assert found.truncated and len(found)<=100 and text.startswith(found.document) and len(found.document)>80
    assert list(found.ids)==tokenizer(f'Sum up: {found.document}\nSummary:')['input_ids']
    marked = fit('Sum up: {document}\nSummary:', tokenizer, 'One </s> two.', 200)
    assert tokenizer.eos_token_id not in marked.ids and marked.ids.count(tokenizer.bos_token_id)==1

def test_a_tokenizer_without_a_beginning(shared, tmp_path):
    "As GPT-2's: it has a beginning token but puts none"
    from transformers import GPT2TokenizerFast
    folder = shared/'data'/'tokenizers'
    (tmp_path/'vocab.json').write_bytes((folder/'gpt2_vocab.json').read_bytes())
    (tmp_path/'merges.txt').write_bytes((folder/'gpt2_merges.txt').read_bytes())
    tokenizer = GPT2TokenizerFast.from_pretrained(tmp_path)
    assert prompt_opening_ids(tokenizer)==[]
    found = fit('after', tokenizer, 'Words. '*300+'<|endoftext|>', 10**6)
    assert tokenizer.eos_token_id not in found.ids and tokenizer.decode(found.ids).endswith('Summary:\n')

def test_a_mark_in_the_template_is_kept_and_in_the_document_is_text():
    tokenizer = chatty(llama3)
    for text in ('<s>', 'a</s>b', '<pad><s></s>', 'x <s> '*50):
        ids = fit('after', tokenizer, text, 10**6).ids
        assert [ids.count(i) for i in (0, 1, 2)]==[1, 0, 0]
    assert fit(Prompt('p', '<s>Read: {document}'), load_tokenizer()[1], 'a', 99).ids.count(0)==1 # not twice either

def test_system_lines():
    for template, where in ((llama3, '<|head|>system'), (refuses, '<turn>user\n'+SYSTEM+'\n\nText:'), (drops, '### user\n'+SYSTEM+'\n\nText:')):
        assert where in around('after', chatty(template))[0]
    assert around('after', chatty(llama3), chat=False)[0].startswith(SYSTEM)

def test_variables_of_a_template():
    assert around('{document}', chatty(thinks))[1]=='[assistant]'
    assert around('{document}', chatty(thinks), chat=dict(enable_thinking=False))[1]=='[assistant](no thoughts)'

def test_the_same_prompt_on_any_day():
    dated = "{{strftime_now('%A %-d %b %Y %H:%M')}}{% if date_string is defined %}|{{date_string}}{% endif %}|{{messages[0].content}}"
    assert around('{document}', chatty(dated))[0]=='Friday 26 Jul 2024 00:00|26 Jul 2024|'

def test_a_hundred_thousand_words(embedded):
    text = 'A long document has many words, and few of them fit. '*9000
    start = time.process_time()
    found = fit('after', embedded, text, 400)
    assert 300<len(found)<=400 and time.process_time()-start<5

def test_blank_lines_around_a_document_go_and_indentation_stays(embedded):
    assert fit('document', embedded, '\n \n    x = 1\n    y = 2  \n\n', 99).document=='    x = 1\n    y = 2'
    for o in ('', '\n \n', '   '): assert (fit('document', embedded, o, 99).document, fit('document', embedded, o, 99).truncated)==('', False)

def test_bad_input(embedded):
    for f, kind, message in ((lambda: fit('document', embedded, 3, 99), TypeError, 'got int'), (lambda: fit('afterr', embedded, 'a', 99), ValueError, "did you mean 'after'"),
                             (lambda: fit('document', embedded, 'a'*99, 3), ValueError, r'got 3'), (lambda: fit('document', embedded, 'a', 99, True), ValueError, 'without a chat template'),
                             (lambda: fit('document', embedded, 'a', 99, 'yes'), TypeError, "got 'yes'"), (lambda: as_prompt(None), TypeError, 'NoneType'),
                             (lambda: around('{document}', chatty('no words')), ValueError, 'shows what the user says once, got it 0 times'),
                             (lambda: Prompt('', '{document}'), ValueError, '`name`'), (lambda: Prompt('a', '{document}', 3), ValueError, '`system`')):
        with pytest.raises(kind, match=message): f()

@pytest.mark.parametrize('template,says', [('Sum up {document} for {reader}.', r'got \{reader\}'), ('Sum up {documnt}', r'did you mean \{document\}'),
                                           ('{Document}', r'did you mean \{document\}'), ('Sum up this text:', r'must hold \{document\} once')])
def test_a_field_that_is_not_known_is_refused(template, says):
    with pytest.raises(ValueError, match=says): as_prompt(template)
    with pytest.raises(ValueError, match=says): Prompt('own', template)

def test_braces_around_anything_but_a_word_stand_for_themselves(embedded):
    for template in ('Answer as {"summary": "..."}: {document}', '{} {1} { x } {document}', '{{% raw %}} {document}', 'f(x) = {x: 1} {document}'):
        assert as_prompt(template).fill('a {b}')==template.replace('{document}', 'a {b}')

def test_a_prompt_is_shown_as_it_is(embedded):
    assert '\x1b' not in repr(Prompt('a|b<i>\x1b[31m', '\x1b[2J{document}'))
    with pytest.raises(ValueError) as e: as_prompt('\x1b[2J{document} {foo}')
    assert '\x1b' not in str(e.value)
