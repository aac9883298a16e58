"Chat templates are programs by strangers: what they make is what transformers makes, and they are stopped"
import threading
import pytest
from compresscal.models import chat
from compresscal.calibration.sampling import window_frame
from compresscal.models.chat import chat_frame, render_chat
from compresscal.summaries.prompts import around
from compresscal.calibration.self_text import chat_script

turns = [dict(role='system', content='Be brief.'), dict(role='user', content='Zwölf "Boxer" <|x|>\n{{ 1 }}', name=None), dict(role='assistant', content='')]
templates = ['{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content|trim }}{{ m|tojson }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}',
             "{% set ns = namespace(n=0) %}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ day }}"]
endless = '{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}'
said = turns[1:2]

@pytest.mark.parametrize('template', templates)
@pytest.mark.parametrize('opens', [False,True])
def test_the_text_is_that_of_transformers(template, opens, tiny_tokenizer):
    how = dict(add_generation_prompt=opens, day='Monday')
    assert render_chat(tiny_tokenizer, turns, template=template, **how)==tiny_tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **how)

@pytest.mark.parametrize('template,why', [(endless,'stopped after 0.3 seconds'), ('{{ 7**(7**20) }}','stopped after 0.3 seconds'), ("{{ 'x'*(10**10) }}",'MiB of memory'),
    ('{% set ns = namespace(x="x") %}{% for i in range(60) %}{% set ns.x = ns.x~ns.x %}{% endfor %}','MiB of memory'), ("{{ 'x'*20000000 }}",'more than 10,000,000 characters'),
    ('{% for x in %}','Expected an expression'), ('{{ raise_exception("no\n\x1b[31m such role") }}','no.*such role'), ('{{ messages.__class__.__mro__ }}','unsafe|undefined'),
    ('{% for i in range(10**9) %}{% endfor %}','Range too big')])
def test_what_is_wrong_is_one_line(template, why, tiny_tokenizer):
    seconds = .3 if 'stopped' in why else 30 # on a busy machine
    with pytest.raises(ValueError, match=why) as e: render_chat(tiny_tokenizer, said, template=template, seconds=seconds)
    assert str(e.value).startswith('`tokenizer` must have a chat template') and str(e.value).isprintable()
    assert render_chat(tiny_tokenizer, said, template='{{ 1+1 }}')=='2'

def test_a_loop_ends_in_any_thread(tiny_tokenizer):
    found = []
    def ask():
        try: render_chat(tiny_tokenizer, said, template=endless, seconds=.3)
        except ValueError as e: found.append(str(e))
    asking = [threading.Thread(target=ask) for _ in range(2)]
    for o in asking: o.start()
    for o in asking: o.join(60)
    assert len(found)==2 and all('stopped after' in o for o in found)

@pytest.mark.parametrize('use', [lambda t: window_frame(t, chat=True), lambda t: chat_script(None, t, False), lambda t: around('before', t), chat_frame])
def test_everything_that_uses_a_template_ends(use, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, 'chat_template', endless)
    monkeypatch.setattr(chat._renderer, 'ask', lambda *_: None) # as after five seconds
    with pytest.raises(ValueError, match='stopped after 5 seconds'): use(tiny_tokenizer)

def test_a_turn_must_be_shown_once(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, 'chat_template', '{{ messages[0].content }}{{ messages[0].content }}')
    for use in (chat_frame, lambda t: window_frame(t, chat=True)):
        with pytest.raises(ValueError, match='says once, got it 2 times'): use(tiny_tokenizer)

def test_the_working_folder_is_not_imported_from(tiny_tokenizer, tmp_path, monkeypatch):
    (tmp_path/'json.py').write_text(f"import os\nos.mkdir({str(tmp_path/'run')!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chat, '_renderer', chat._Renderer())
    assert render_chat(tiny_tokenizer, said, template='{{ 1+1 }}')=='2' and not (tmp_path/'run').exists()
    chat._renderer.close()

def test_the_process_ends_with_its_owner(tiny_tokenizer):
    render_chat(tiny_tokenizer, said, template='a')
    process = chat._renderer.process
    chat._renderer.close()
    assert process.returncode==0 and chat._renderer.process is None
    assert render_chat(tiny_tokenizer, said, template='b')=='b'

def test_variables_are_data(tiny_tokenizer):
    with pytest.raises(TypeError, match='`variables` must be what JSON can hold, got day'): render_chat(tiny_tokenizer, said, template='a', day={1})
