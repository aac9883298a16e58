"Text that a model writes for its own calibration: recipes, frames, what may come, and what is refused"
from copy import deepcopy
from itertools import combinations

import pytest, torch
from compresscal.calibration.calibration_set import CalibrationSet
from compresscal.calibration.sampling import regenerate, sample_sets
from compresscal.choosing.disjoint import document_names
from compresscal.choosing.selection import at_random, proportional, representative
from compresscal.core.spelling import parse_mixture
from compresscal.calibration.sources import calibration_sets, is_written, parse_recipe, shared_text
from compresscal.experiments.study import Study
from compresscal.calibration.self_text import RECIPE_PRESETS, Recipe, chat_script, end_ids, find_recipe, random_vocabulary, self_calibrate, self_calibration_sets, write_again

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture
def padded(tiny_model):
    "A model with eight more rows of logits than the tokenizer has tokens, all of them loud"
    with torch.no_grad():
        tiny_model.resize_token_embeddings(267, mean_resizing=False)
        tiny_model.lm_head.weight[259:] = tiny_model.lm_head.weight[40]*3
    return tiny_model

@pytest.fixture
def chatty(tiny_tokenizer):
    t = deepcopy(tiny_tokenizer)
    t.chat_template = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>bot:{% endif %}"
    return t

def write(model, tokenizer, n=6, length=80, **kwargs): return self_calibrate(model, tokenizer, n, length, progress=False, **kwargs)

@pytest.mark.parametrize('recipe', RECIPE_PRESETS)
def test_batch_size_and_neighbours_do_not_matter(tiny_model, tiny_tokenizer, recipe):
    sets = [self_calibration_sets(tiny_model, tiny_tokenizer, 2, 5, 80, 3, b, recipe=recipe, progress=False) for b in (1, 3, None)]
    assert sets[0]==sets[1]==sets[2] and sets[0][0]!=sets[0][1]

def test_a_set_is_the_head_of_a_larger_one(tiny_model, tiny_tokenizer):
    small, large = (write(tiny_model, tiny_tokenizer, n) for n in (3, 9))
    assert torch.equal(small.tokens, large.tokens[:3])

def test_sets_and_seeds_share_no_window(tiny_model, tiny_tokenizer):
    rows = [tuple(r) for seed in (0, 1) for s in self_calibration_sets(tiny_model, tiny_tokenizer, 3, 5, 48, seed, progress=False) for r in s.tokens.tolist()]
    assert len(set(rows))==30

def test_every_window_has_one_head(tiny_model, tiny_tokenizer):
    for recipe in RECIPE_PRESETS: assert (write(tiny_model, tiny_tokenizer, recipe=recipe).tokens[:,0]==0).all()
    s = write(tiny_model, tiny_tokenizer, bos=False)
    assert s.length==80 and not (s.tokens[:,0]==0).any() and s.manifest['sampling']['bos'] is None
    assert torch.equal(s.tokens[:,:79], write(tiny_model, tiny_tokenizer).tokens[:,1:]) # the same text, its head left out

def test_without_bos_the_end_token_opens_and_is_left_out(tiny_model, tiny_tokenizer):
    t = deepcopy(tiny_tokenizer)
    t.bos_token = None
    s = write(tiny_model, t)
    assert s.length==80 and s.manifest['sampling']['bos'] is None and s!=write(tiny_model, tiny_tokenizer, bos=False)
    with pytest.raises(ValueError, match='`bos` must be False'): write(tiny_model, t, bos=True)
    t.eos_token = None
    with pytest.raises(ValueError, match='`prompt` must be given'): write(tiny_model, t)
    assert tiny_tokenizer.decode(write(tiny_model, t, prompt='ab').tokens[0]).startswith('ab')

def test_rows_of_padding_and_special_tokens_are_never_drawn(padded, tiny_tokenizer):
    s = write(padded, tiny_tokenizer, 8, 128)
    assert s.tokens.max()<259 and not (s.tokens==2).any()

def test_special_tokens_come_if_they_may(padded, tiny_tokenizer):
    with torch.no_grad(): padded.lm_head.weight[2] = padded.lm_head.weight[259]*2
    s = write(padded, tiny_tokenizer, 8, 64, special_tokens=True)
    assert (s.tokens==2).any() and s.tokens.max()<259

def test_keep_below_keeps_what_surprised_least(tiny_model, tiny_tokenizer):
    "Of ten windows the five of lowest perplexity, in their order"
    everything, half = write(tiny_model, tiny_tokenizer, 10), write(tiny_model, tiny_tokenizer, 5, keep_below=50)
    from compresscal.evaluation.perplexity import perplexity
    per = torch.tensor(perplexity(tiny_model, everything, progress=False).window_nats)
    expected = per.sort().indices[:5].sort().values
    assert torch.equal(half.tokens, everything.tokens[expected])

def test_prefixes_are_real_text(tiny_model, tiny_tokenizer):
    s = write(tiny_model, tiny_tokenizer, 12, 80, start='text', text='docs', prefix=(5, 20))
    text,plain = regenerate(s.manifest['text']['manifest'], tiny_tokenizer),sample_sets('docs', tiny_tokenizer, 1, 12, 80)[0]
    assert not {n for n,_ in document_names(text.manifest)} & {n for n,_ in document_names(plain.manifest)}
    shared = [int((a[1:21]==b).long().cumprod(0).sum()) for a,b in zip(s.tokens, text.tokens)]
    assert min(shared)>=5 and len(set(shared))>3 and s.manifest['text']['hash']==text.hash

def test_vocabulary_starts_differ(tiny_model, tiny_tokenizer):
    s = write(tiny_model, tiny_tokenizer, 100, 16, recipe='vocabulary')
    assert len(set(s.tokens[:,1].tolist()))==100 and not set(s.tokens[:,1].tolist()) & {0, 1, 2}

def test_half_is_greedy(tiny_model, tiny_tokenizer):
    "Two seeds agree on the first half of a window that starts alike, and not on the second"
    a,b = (write(tiny_model, tiny_tokenizer, 4, 64, greedy=.5, eos='continue', seed=s).tokens for s in (0, 1))
    assert torch.equal(a[:,:33], b[:,:33]) and not torch.equal(a[:,33:], b[:,33:])

def test_temperatures_take_turns(tiny_model, tiny_tokenizer):
    mixed = write(tiny_model, tiny_tokenizer, temperatures=(.5, 1.5)).tokens
    cold, hot = (write(tiny_model, tiny_tokenizer, t_final=t).tokens for t in (.5, 1.5))
    assert torch.equal(mixed[::2], cold[::2]) and torch.equal(mixed[1::2], hot[1::2])

def test_a_reply_follows_the_frame(tiny_model, chatty):
    s = write(tiny_model, chatty, start='reply')
    assert all(o.startswith('<s>user:</s><s>bot:') for o in chatty.batch_decode(s.tokens))
    assert (s.tokens[:,1]!=0).all() # no second opening token

def test_a_dialogue_has_both_turns(tiny_model, chatty):
    "The model closes the user's turn; the frame of the reply follows at once"
    with torch.no_grad(): tiny_model.lm_head.weight[1] = tiny_model.lm_head.weight.mean(0)+.3*torch.randn(32, generator=torch.Generator().manual_seed(0))
    s = write(tiny_model, chatty, 16, 128, start='dialogue')
    texts = chatty.batch_decode(s.tokens)
    assert all(o.startswith('<s>user:') for o in texts)
    closed = [o for o in texts if '</s>' in o[8:]]
    assert len(closed)>3 and all(o[8:].split('</s>')[1].startswith('<s>bot:'[:len(o[8:].split('</s>')[1])]) for o in closed)

def test_dialogues_need_a_template_that_tells_the_end_of_a_turn(tiny_model, tiny_tokenizer):
    t = deepcopy(tiny_tokenizer)
    t.chat_template = '{% for m in messages %}[I] {{ m.content }} [/I]{% endfor %}'
    with pytest.raises(ValueError, match='ordinary text'): write(tiny_model, t, start='dialogue')
    assert write(tiny_model, t, start='reply').length==80

def test_ends_of_the_generation_config_count(tiny_model, tiny_tokenizer):
    tiny_model.generation_config.eos_token_id = [1, 7]
    assert end_ids(tiny_model, tiny_tokenizer)==(1, 7)

@pytest.mark.parametrize('settings, says', [(dict(t_final=0), '`t_final` must'), (dict(t_final=-1.), '`t_final` must'), (dict(t_initial=0., schedule=3), '`t_initial` must'),
    (dict(temperatures=(1., 0.)), '`t_final` must'), (dict(top_p=0.), '`top_p` must'), (dict(top_k=0), '`top_k` must'), (dict(eos='stop'), '`eos` must'),
    (dict(start='here'), '`start` must'), (dict(start='text'), '`text` must'), (dict(prefix=(5, 2)), '`prefix` must'), (dict(prefix=(0, 2)), '`prefix` must'),
    (dict(keep_below=0), '`keep_below` must'), (dict(greedy=1.), '`greedy` must'), (dict(repetition_penalty=0.), '`repetition_penalty` must')])
def test_settings_are_checked(settings, says):
    with pytest.raises(ValueError, match=says): Recipe(**settings)

@pytest.mark.parametrize('size, says', [((0, 16), '`n_sequences` must'), ((-3, 16), '`n_sequences` must'), ((4, 0), '`length` must'), ((4, 129), 'context of 128 tokens, got 129'), ((4, 2.5), '`length` must')])
def test_sizes_are_checked(tiny_model, tiny_tokenizer, size, says):
    with pytest.raises(ValueError, match=says): self_calibrate(tiny_model, tiny_tokenizer, *size)

def test_a_prefix_must_leave_room(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match='must be shorter than'): write(tiny_model, tiny_tokenizer, 2, 8, prompt='a prompt that is longer')
    with pytest.raises(ValueError, match='must leave room'): write(tiny_model, tiny_tokenizer, 2, 16, start='text', text='docs', prefix=(16, 20))

def test_a_model_that_emits_nan_leaves_nothing(tiny_model, tiny_tokenizer, tmp_path):
    with torch.no_grad(): tiny_model.lm_head.weight[5] = float('nan')
    with pytest.raises(ValueError, match='finite'): write(tiny_model, tiny_tokenizer, folder=tmp_path/'w')
    assert not [p for p in (tmp_path/'w').rglob('*.safetensors')] if (tmp_path/'w').exists() else True

def test_a_manifest_gives_the_set_again(tiny_model, tiny_tokenizer, tmp_path):
    "Through a file, set by set, also for windows without a head"
    for kwargs in (dict(), dict(bos=False), dict(recipe='prefix'), dict(recipe='temperatures')):
        for i,s in enumerate(self_calibration_sets(tiny_model, tiny_tokenizer, 2, 4, 72, 5, progress=False, **kwargs)):
            s.save(tmp_path/f'{len(list(tmp_path.iterdir()))}')
            assert write_again(CalibrationSet.load(sorted(tmp_path.iterdir(), key=lambda p: int(p.name))[-1]).manifest, tiny_model, tiny_tokenizer, s.hash, progress=False)==s

def test_another_model_is_refused(tiny_model, tiny_tokenizer):
    s = write(tiny_model, tiny_tokenizer)
    with torch.no_grad(): tiny_model.lm_head.weight[9] += 1
    with pytest.raises(ValueError, match='`model` must have fingerprint'): write_again(s.manifest, tiny_model, tiny_tokenizer)

def test_random_tokens_follow_frequencies(tiny_tokenizer):
    text, = sample_sets('docs', tiny_tokenizer, 1, 64, 128)
    like, = random_vocabulary(tiny_tokenizer, 1, 64, 128, frequencies=text)
    share = lambda s: s.tokens[:,1:].flatten().bincount(minlength=259).double()/(64*127)
    assert (share(like)-share(text)).abs().max()<.01 and (share(random_vocabulary(tiny_tokenizer, 1, 64, 128)[0])-share(text)).abs().max()>.05

@pytest.mark.parametrize('name, shares', [('docs=0.5+code=0.5', dict(docs=.5, code=.5)), ('a/b.txt=25%+random:docs=75%', {'a/b.txt': .25, 'random:docs': .75}), ('c++/notes.txt', None), ('docs', None)])
def test_names_of_mixtures(name, shares): assert parse_mixture(name)==shares

def test_names_of_recipes():
    assert parse_recipe('self:carlini,top_k=40')==find_recipe('carlini', top_k=40) and parse_recipe('selfish') is None
    assert [is_written(o) for o in ('self', 'docs=.5+self=.5', 'docs=.5+code=.5')]==[True, True, False]
    with pytest.raises(ValueError, match='one recipe'): parse_recipe('self:plain,carlini')

@pytest.mark.parametrize('source, says', [('docs=0.5+code=0.6', 'sum to 1'), ('self', '`model` must be given'), ('self:carlin', 'one of plain'), ('random:nothing', 'did you mean|must be a known name'), ({}, 'positive')])
def test_sources_are_checked(tiny_tokenizer, source, says):
    with pytest.raises(ValueError, match=says): calibration_sets(source, tiny_tokenizer, 1, 4, 32)

def test_a_mixture_keeps_its_shares(tiny_model, tiny_tokenizer):
    sets = calibration_sets('docs=0.55+self=0.45', tiny_tokenizer, 2, 20, 32, model=tiny_model, progress=False)
    assert [[p['sequences'] for p in s.manifest['parts']] for s in sets]==[[11, 9]]*2 and [len(s) for s in sets]==[20, 20]
    own = {tuple(r) for s in calibration_sets('self', tiny_tokenizer, 2, 20, 32, model=tiny_model, progress=False) for r in s.tokens.tolist()}
    assert not any(tuple(r) in own for s in sets for r in s.tokens.tolist())

# ---- sources that are made of others

def documents(sets): return {n for o in sets for n,_ in document_names(o.manifest)}
def counted(sets): return [{n for n,_ in document_names(o.manifest['sampling']['frequencies']['manifest'])} for o in sets]

def test_sources_made_of_one_text_share_no_document(tiny_model, tiny_tokenizer):
    "Plain, mixed in several ways, counted, gone on from: each has its own documents"
    names = ['docs', 'docs=0.5+code=0.5', 'docs=0.25+random:docs=0.75', 'random:docs', 'self:prefix']
    made = {o: calibration_sets(o, tiny_tokenizer, 2, 4, 72, model=tiny_model, progress=False, among=names) for o in names}
    used = {o: documents(s) for o,s in made.items()}
    used['random:docs'] = set.union(*counted(made['random:docs']))
    parts = [p['manifest']['sampling']['frequencies']['manifest'] for s in made['docs=0.25+random:docs=0.75'] for p in s.manifest['parts'] if 'random' in p['name']]
    used['in the mixture'] = {n for o in parts for n,_ in document_names(o)}
    assert {k: len(o) for k,o in used.items()}=={'docs': 8, names[1]: 8, names[2]: 2, 'random:docs': 8, 'self:prefix': 10, 'in the mixture': 6}
    for a,b in combinations(used, 2): assert not used[a] & used[b], (a, b)
    assert not any(shared_text(o) for s in made.values() for o in s)
    assert made['docs']==sample_sets('docs', tiny_tokenizer, 2, 4, 72)

def test_each_set_of_random_tokens_counts_on_documents_of_its_own(tiny_tokenizer):
    a,b = calibration_sets('random:docs', tiny_tokenizer, 2, 4, 72)
    first,second = counted([a, b])
    assert len(first)==len(second)==4 and not first & second
    share = lambda s: s.tokens[:,1:].flatten().bincount(minlength=259).double()/(4*71)
    alike = [share(o) for o in random_vocabulary(tiny_tokenizer, 2, 4, 72, frequencies=sample_sets('docs', tiny_tokenizer, 1, 4, 72)[0])]
    assert (share(a)-share(b)).abs().sum()>(alike[0]-alike[1]).abs().sum()

def test_a_mixture_has_random_streams_of_its_own(tiny_tokenizer):
    names = ['random', 'docs=0.5+random=0.5', 'docs=0.75+random=0.25']
    plain,half,less = ({tuple(r) for s in calibration_sets(o, tiny_tokenizer, 2, 8, 32, among=names) for r in s.tokens.tolist()} for o in names)
    assert not plain & half and not plain & less and not half & less

def test_what_is_shared_for_want_of_text_is_said(tiny_tokenizer):
    pages = tuple(' '.join(f'word{i}x{j}' for j in range(30)) for i in range(40))
    sets = {n: calibration_sets({pages: .5, 'random': .5}, tiny_tokenizer, 2, n, 72)[0] for n in (4, 12, 18)}
    said = {n: shared_text(o) for n,o in sets.items()}
    assert not said[4] and 'other sources made of it' in said[12][0] and 'plain sets' in said[18][0]
    with pytest.raises(ValueError, match='too little text'): calibration_sets({pages: .9, 'random': .1}, tiny_tokenizer, 2, 60, 72)

def test_near_copies_are_apart_too(tiny_tokenizer):
    pages = [' '.join(f'word{i}x{j}' for j in range(30)) for i in range(60)]
    copies = [o.replace('word', 'WORD', 3)+' end' for o in pages]
    number = lambda sets: {int(n.split(':')[-1])%60 for n in documents(sets)}
    plain,mixed = (calibration_sets(o, tiny_tokenizer, 1, 8, 72) for o in (pages+copies, {tuple(pages+copies): .5, 'random': .5}))
    assert len(number(plain))==8 and len(number(mixed))==4 and not number(plain) & number(mixed)

# ---- seeds, chat templates, special tokens

@pytest.mark.parametrize('seed', [2**32, 10**40]) # beyond what generators keep, and beyond the hash
def test_any_whole_number_is_a_seed(tiny_model, tiny_tokenizer, seed):
    for name in ('random', 'docs', 'random:docs', 'self:prefix', 'self:vocabulary', 'docs=0.5+random=0.5'):
        first,again,other = (calibration_sets(name, tiny_tokenizer, 1, 4, 72, o, model=tiny_model, progress=False)[0] for o in (seed, seed, seed+1))
        assert first==again!=other, name
    chosen = at_random(first, 2, seed),proportional(first, 'abab', seed=seed),representative(first, torch.arange(8.).view(4, 2)**2, 2, seed)
    assert all(len(o) for o in chosen)

@pytest.mark.parametrize('seed', [-1, 1.5, True, '3', None])
def test_what_is_no_seed_is_refused_by_name(tiny_model, tiny_tokenizer, seed):
    for name in ('random', 'docs', 'self'):
        with pytest.raises(ValueError, match='`seed` must be a whole number, 0 or more'):
            calibration_sets(name, tiny_tokenizer, 1, 4, 32, seed, model=tiny_model, progress=False)

def test_another_chat_template_is_refused_by_name(tiny_model, chatty):
    s = write(tiny_model, chatty, start='reply')
    assert write_again(s.manifest, tiny_model, chatty, s.hash, progress=False)==s
    chatty.chat_template = chatty.chat_template.replace('role }}:', 'role }} says:')
    with pytest.raises(ValueError, match='chat template|tokens before and between'): write_again(s.manifest, tiny_model, chatty)
    chatty.chat_template = '{% for m in messages %}[I] {{ m.content }} [/I]{% endfor %}' # says nothing of what opens a document
    plain = write(tiny_model, chatty)
    chatty.chat_template = None
    assert write_again(plain.manifest, tiny_model, chatty, plain.hash, progress=False)==plain # it used none

def test_other_ends_of_text_are_refused_by_name(tiny_model, tiny_tokenizer):
    s = write(tiny_model, tiny_tokenizer)
    tiny_model.generation_config.eos_token_id = [1, 7]
    with pytest.raises(ValueError, match='ends of a text'): write_again(s.manifest, tiny_model, tiny_tokenizer)

def test_text_of_earlier_random_streams_is_not_written_again(tiny_model, tiny_tokenizer):
    s = write(tiny_model, tiny_tokenizer)
    del s.manifest['sampling']['streams']
    with pytest.raises(ValueError, match='earlier version'): write_again(s.manifest, tiny_model, tiny_tokenizer)

def test_study_takes_what_the_model_writes(tiny_model, tiny_tokenizer, tmp_path):
    study = Study({'tiny': (tiny_model, tiny_tokenizer)}, ['wanda:0.5'], ['self', 'random:docs', 'docs=0.5+self:carlini=0.5'], 2, 4, 32, evaluations=['docs'], n_evaluation=4, replicates=0)
    r = study.run(tmp_path/'s', progress=False)
    assert {o['source'] for o in r.rows}=={'none', 'self', 'random:docs', 'docs=0.5+self:carlini=0.5'} and len(r.select(metric='perplexity').rows)==7
    assert r.to_csv()==study.run(tmp_path/'s', progress=False).to_csv() and not (tmp_path/'s'/'written').exists()
    for source in ('self', 'random', 'docs=.5+code=.5'):
        with pytest.raises(ValueError, match='text that people wrote'): Study(evaluations=[source])
    with pytest.raises(ValueError, match='one of plain'): Study(sources=['self:plane'])
