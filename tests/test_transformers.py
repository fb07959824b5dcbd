"""Models of Hugging Face Transformers with random weights: attention by npkernels against "eager"."""

import copy
import pathlib
import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from transformers import masking_utils

import npkernels
from npkernels import transformers as door
from npkernels._transformers_mask import PatternMask

door.register()

VOCABULARY, LENGTH = 61, 11
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
WINDOWED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "llama": ("Llama", {}),
    "qwen3": ("Qwen3", {}),
    "gemma2": ("Gemma2", {"attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 8, **WINDOWED}),
    "gemma3": ("Gemma3", {"query_pre_attn_scalar": 8, **WINDOWED}),
    "gpt_oss": ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, **WINDOWED}),
}


def decoder(name):
    family, options = MODELS[name]
    text = "Text" if family == "Gemma3" else ""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}{text}Config" if text else f"{family}Config")(
        **DECODER, **options
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return decoder(request.param)


@pytest.fixture(scope="module")
def llama():
    return decoder("llama")


def tokens(batch=3, length=LENGTH, seed=1):
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(side, length=LENGTH, counts=(0, 2, 5)):
    """1 where a token is; of the three sequences so many tokens are missing."""
    mask = torch.ones(3, length, dtype=torch.int64)
    for row, count in zip(mask, counts, strict=True):
        if side == "left":
            row[:count] = 0
        elif side == "right":
            row[length - count :] = 0
    return mask


def by(model, implementation, call):
    """What the call gives with that attention."""
    model.set_attn_implementation(implementation)
    return call()


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


SIDES = ["none", "left", "right"]


@pytest.mark.parametrize("side", SIDES)
def test_logits(model, side):
    mask = padding(side)

    def logits():
        with torch.inference_mode():
            return model(tokens(), attention_mask=mask, position_ids=positions(mask)).logits

    expected = by(model, "eager", logits)
    found = by(model, "npkernels", logits)
    real = mask.bool()
    assert expected[real].std() > 0.3  # something to see
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("side", SIDES)
def test_generate(model, side, cache):
    """Greedy, past the window: each step reads the cache. Even after padding, a window still has a token in it."""
    mask = padding(side, counts=(0, 1, 2) if side == "right" else (0, 2, 5))

    def generate():
        options = {"cache_implementation": cache} if cache else {}
        return model.generate(tokens(), attention_mask=mask, max_new_tokens=12, do_sample=False, **options)

    expected = by(model, "eager", generate)
    assert expected.shape == (3, LENGTH + 12)
    assert torch.equal(by(model, "npkernels", generate), expected)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # the name before 5.24
def test_several_tokens_on_a_cache(model):
    """A prompt in three pieces, of several tokens each."""

    def logits():
        with torch.inference_mode():
            cache, parts = transformers.DynamicCache(config=model.config), []
            for piece in tokens().split([6, 2, 3], dim=1):
                seen = cache.get_seq_length() + piece.shape[1]
                output = model(piece, attention_mask=padding("left")[:, :seen], past_key_values=cache)
                parts.append(output.logits)
            return torch.cat(parts, dim=1)

    expected, found = by(model, "eager", logits), by(model, "npkernels", logits)
    real = padding("left").bool()
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_gradients(model, side):
    mask = padding(side)
    before = torch.cat([mask[:, :1], mask[:, :-1]], dim=1)  # what predicts a token is no padding either
    labels = tokens().masked_fill(mask * before == 0, -100)

    def gradients():
        model.zero_grad()
        model(tokens(), attention_mask=mask, position_ids=positions(mask), labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, found = by(model, "eager", gradients), by(model, "npkernels", gradients)
    assert expected.keys() == found.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_what_follows_padding_on_the_left_learns_as_by_sdpa(llama):
    """The last token of the padding, which sees nothing, predicts the first of the text: "eager" has something else."""
    mask = padding("left")
    labels = tokens().masked_fill(mask == 0, -100)

    def gradients():
        llama.zero_grad()
        llama(tokens(), attention_mask=mask, labels=labels).loss.backward()
        return torch.cat([p.grad.flatten() for p in llama.parameters()])

    eager, sdpa, found = (by(llama, name, gradients) for name in ("eager", "sdpa", "npkernels"))
    torch.testing.assert_close(found, sdpa, rtol=1e-4, atol=1e-5)
    assert (found - eager).abs().max() > 0.1


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return transformers.BertModel(config).eval()


@pytest.mark.parametrize("side", SIDES)
def test_bert(bert, side):
    mask = padding(side)

    def states():
        with torch.inference_mode():
            return bert(tokens(), attention_mask=mask).last_hidden_state

    expected, found = by(bert, "eager", states), by(bert, "npkernels", states)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["none", "left"])
def test_export(llama, side):
    """Attention is in the graph, with the mask as a tensor."""
    llama.set_attn_implementation("npkernels")
    options = {"attention_mask": padding(side), "use_cache": False}
    with torch.no_grad():
        exported = torch.export.export(llama, (tokens(),), options, strict=False)
        found, expected = (f(tokens(seed=2), **options).logits for f in (exported.module(), llama))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert sum("npkernels.attention" in str(node.target) for node in exported.graph.nodes) == 2


def test_dropout_follows_the_seed(bert):
    def trained(implementation, seed):
        bert.set_attn_implementation(implementation)
        torch.manual_seed(seed)
        bert.zero_grad()
        states = bert(tokens(), attention_mask=padding("left")).last_hidden_state
        states.square().mean().backward()
        grads = [p.grad for p in bert.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in grads)
        return states.detach()

    bert.train()
    try:
        first = trained("npkernels", 0)
        assert torch.equal(first, trained("npkernels", 0))
        assert not torch.equal(first, trained("npkernels", 1))
    finally:
        bert.eval()


def test_position_bias_of_t5():
    """Encoder, decoder and cross-attention; the bias is learned."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(config).eval()

    def result():
        model.zero_grad()
        output = model(tokens(), attention_mask=padding("right"), labels=tokens(length=5, seed=2))
        output.loss.backward()
        return [output.logits.detach(), *(p.grad.clone() for p in model.parameters())]

    for found, expected in zip(by(model, "npkernels", result), by(model, "eager", result), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_and_autocast(llama):
    def logits():
        with torch.inference_mode():
            return llama(tokens()).logits.float()

    def cast():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return logits()

    exact = by(llama, "eager", logits)
    expected = by(llama, "eager", cast)
    error, theirs = ((x - exact).abs().mean() for x in (by(llama, "npkernels", cast), expected))
    assert 0 < error < 1.5 * theirs
    low = decoder("llama").bfloat16()
    low.set_attn_implementation("npkernels")
    with torch.inference_mode():
        assert (low(tokens()).logits.float() - exact).abs().mean() < 3 * theirs


def test_masks_of_the_caller(llama):
    """4-D masks, bool and added, and packed sequences."""
    allowed = torch.rand(3, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.5
    allowed |= torch.eye(LENGTH, dtype=torch.bool)
    added = torch.where(allowed, torch.randn(allowed.shape, generator=torch.Generator().manual_seed(5)), -1e9)
    restart = torch.cat([torch.arange(4), torch.arange(LENGTH - 4)]).expand(3, -1)
    # "eager" knows no bool masks
    for ours, theirs in (
        ({"attention_mask": allowed}, {"attention_mask": torch.where(allowed, 0.0, -1e9)}),
        ({"attention_mask": added}, {"attention_mask": added}),
        ({"position_ids": restart, "use_cache": False}, {"position_ids": restart, "use_cache": False}),
    ):
        with torch.inference_mode():
            expected = by(llama, "eager", lambda given=theirs: llama(tokens(), **given).logits)
            found = by(llama, "npkernels", lambda given=ours: llama(tokens(), **given).logits)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning")  # the names before 5.24
def test_gradient_checkpointing(llama):
    def gradients():
        llama.zero_grad()
        llama(tokens(), attention_mask=padding("left"), labels=tokens(), use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in llama.parameters()])

    expected = by(llama, "npkernels", gradients)
    llama.gradient_checkpointing_enable()
    llama.train()
    try:
        assert torch.equal(gradients(), expected)
    finally:
        llama.eval()
        llama.gradient_checkpointing_disable()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # the name before 5.24
def test_growing_cache_generates_the_same(model):
    mask = padding("left")

    def generate(**options):
        return model.generate(tokens(), attention_mask=mask, max_new_tokens=12, **options)

    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        expected = by(model, "npkernels", lambda given=options: generate(**given))
        found = generate(past_key_values=door.GrowingCache(config=model.config), **options)
        assert torch.equal(found, expected)
        model.set_attn_implementation("eager")
        assert torch.equal(generate(past_key_values=door.GrowingCache(), **options), expected)


@pytest.mark.parametrize("inference", [False, True])
def test_growing_cache_is_a_dynamic_cache(inference):
    """Append, crop, copy, select, repeat, reset, in any order; and room that was made elsewhere."""
    ours, theirs = door.GrowingCache(), transformers.DynamicCache()
    generator = torch.Generator().manual_seed(0)

    def both(change):
        for cache in (ours, theirs):
            change(cache)
        for a, b in zip(ours.layers, theirs.layers, strict=True):
            assert torch.equal(a.keys, b.keys)
            assert torch.equal(a.values, b.values)

    def append(batch=2, count=3, grad=False):
        new = [torch.randn(batch, 2, count, 4, generator=generator, requires_grad=grad) for _ in range(2)]
        both(lambda cache: [cache.update(*new, layer) for layer in range(2)])

    append(count=70)
    with torch.inference_mode(inference):
        before = ours.layers[0].keys
        append()
        assert ours.layers[0].keys.data_ptr() == before.data_ptr()  # in place
        append(count=100)
        both(lambda cache: cache.crop(-5))
        append()
        clone = copy.deepcopy(ours)
        append()
        assert clone.get_seq_length() == ours.get_seq_length() - 3
        clone.update(torch.zeros(2, 2, 3, 4), torch.zeros(2, 2, 3, 4), 0)
        append()
        both(lambda cache: cache.reorder_cache(torch.tensor([1, 1])))
        append()
        both(lambda cache: cache.batch_repeat_interleave(2))
        append(batch=4)
        both(lambda cache: cache.batch_select_indices(torch.tensor([0])))
        append(batch=1)
    append(batch=1)
    append(batch=1, grad=True)
    assert ours.layers[0].keys.requires_grad
    for cache in (ours, theirs):
        cache.reset()
        cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    assert ours.get_seq_length() == theirs.get_seq_length()


RULES = {
    "causal": (masking_utils.causal_mask_function, {}),
    "window": (masking_utils.sliding_window_causal_mask_function(4), {"local_size": 4}),
    "both sides": (
        masking_utils.sliding_window_bidirectional_mask_function(3),
        {"local_size": 3, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": True},
    ),
    "all": (
        masking_utils.bidirectional_mask_function,
        {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True},
    ),
}
PLACES = [
    (7, 7, 0, 0),
    (1, 9, 8, 0),
    (3, 9, 6, 0),
    (2, 5, 9, 6),
    (5, 12, 0, 0),
]  # S, K, first query, first key


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_the_mask(rule, place, side):
    """What attention reads of the mask, and what PyTorch reads of it, are what "sdpa" makes."""
    S, K, q_offset, kv_offset = place
    function, options = RULES[rule]
    present = padding(side, 12)[:, : K + kv_offset].bool()
    common = {
        "batch_size": 3,
        "q_length": S,
        "kv_length": K,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": function,
        "attention_mask": present,
    }
    mask = door.npkernels_mask(**common, **options)
    assert isinstance(mask, PatternMask)
    expected = masking_utils.sdpa_mask(**common, allow_is_causal_skip=False)
    q, k = torch.zeros(3, 1, S, 2).numpy(), torch.zeros(3, 1, K, 2).numpy()
    weights = npkernels.attention_weights(q, k, **mask.options())
    assert torch.equal(torch.from_numpy(weights) > 0, expected)
    assert mask.is_rule
    assert torch.equal(mask, expected)
    assert type(mask & True) is torch.Tensor
    assert mask.is_rule
    assert torch.equal(mask[:, :, :, 1:], expected[:, :, :, 1:])


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_into_a_mask_counts(inference):
    q, k = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 4, 8)
    with torch.inference_mode(inference):
        for write in (
            lambda m: m.fill_(True),
            lambda m: m[:, :, 1:3].logical_not_(),
            lambda m: m[0].fill_(False),
        ):
            mask = door.npkernels_mask(2, 4, 4)
            expected = masking_utils.sdpa_mask(2, 4, 4, allow_is_causal_skip=False).clone()
            write(mask)
            write(expected)
            assert not mask.is_rule
            assert torch.equal(mask, expected)
            assert str(expected[0, 0, 0, 0].item()) in repr(mask)
            found, expected = (door.npkernels_attention(None, q, k, k, m)[0] for m in (mask, expected))
            assert torch.equal(found, expected)
    assert "offset=0" in repr(door.npkernels_mask(2, 4, 4))


def test_other_patterns_become_tensors():
    chunks = masking_utils.chunked_causal_mask_function(3, torch.tensor([0, 1]))
    blocks = masking_utils.or_masks(masking_utils.causal_mask_function, lambda b, h, q, k: (q < 2) & (k < 4))
    for function, options in (
        (chunks, {"local_size": 3}),
        (blocks, {"allow_is_causal_skip": False, "use_vmap": True}),
        (
            masking_utils.sliding_window_causal_mask_function(2),
            {"local_size": 2, "allow_is_causal_skip": False},
        ),
    ):
        mask = door.npkernels_mask(2, 7, 7, mask_function=function, **options)
        options["allow_is_causal_skip"] = False
        assert type(mask) is torch.Tensor
        assert torch.equal(mask, masking_utils.sdpa_mask(2, 7, 7, mask_function=function, **options))


def test_without_a_mask():
    """The layer or the caller says whether it is causal; more keys than queries are a static cache that is empty."""
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 7, 8)
    causal, free = torch.nn.Identity(), torch.nn.Identity()
    free.is_causal = False

    def check(found, **options):
        expected = npkernels.attention(q, k, k, **options)
        assert torch.equal(found[0], expected.transpose(1, 2))
        assert found[1] is None

    attend = door.npkernels_attention
    check(attend(causal, q, k, k, None), causal="top_left")
    check(attend(free, q, k, k, None))
    check(attend(causal, q, k, k, None, is_causal=False))
    check(attend(free, q, k, k, None, is_causal=True, sliding_window=2), causal="top_left", window=(1, -1))
    q = q[:, :, :1]
    check(attend(causal, q, k, k, None))
    check(attend(causal, q, k, k, None, sliding_window=3), window=(2, 0), q_offset=6)
    check(
        attend(causal, q, k, k, None, scaling=0.3, softcap=2.0, s_aux=torch.ones(4)),
        scale=0.3,
        softcap=2.0,
        sinks=torch.ones(4),
    )


Q = torch.zeros(1, 2, 3, 4)
REFUSED = {
    "weights": (ValueError, "output_attentions is given", {"output_attentions": True}),
    "head mask": (ValueError, "head_mask is given", {"head_mask": torch.ones(2)}),
    "blocks": (ValueError, "block_indices is given", {"block_indices": torch.ones(2)}),
    "mask of two axes": (
        ValueError,
        r"attention_mask has shape \(1, 3\)",
        {"attention_mask": torch.ones(1, 3) > 0},
    ),
    "mask of integers": (
        TypeError,
        "attention_mask has dtype torch.int64",
        {"attention_mask": torch.ones(1, 1, 3, 3).long()},
    ),
    "mask too short": (ValueError, "mask has shape", {"attention_mask": torch.ones(1, 1, 3, 2) > 0}),
    "window": (ValueError, "sliding_window is 2 without a mask", {"is_causal": False, "sliding_window": 2}),
    "dtype": (TypeError, "k has dtype float64, q has float32", {"key": Q.double()}),
    "device": (ValueError, "on meta", {"query": Q.to("meta")}),
    "sinks": (ValueError, "sinks has shape", {"s_aux": torch.ones(3)}),
}


@pytest.mark.parametrize(("error", "text", "change"), REFUSED.values(), ids=REFUSED)
def test_refused(error, text, change):
    given = {"query": Q, "key": Q, "value": Q, "attention_mask": None, **change}
    with pytest.raises(error, match=text):
        door.npkernels_attention(torch.nn.Identity(), **given)


def test_names():
    door.register()
    door.register("npkernels_again")
    for taken in ("sdpa", "eager", "flash_attention_2"):
        with pytest.raises(ValueError, match=f"name is '{taken}', which is taken"):
            door.register(taken)
    with pytest.raises(TypeError, match="name is 3; expected a string"):
        door.register(3)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # the name before 5.24
def test_the_examples_of_the_page():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "transformers.md").read_text()
    names = {}
    for example in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(example, names)
    assert 4 <= names["tokens"].shape[1] <= 8
    assert isinstance(names["cache"], door.GrowingCache)
    assert names["model"](tokens()).logits.shape == (3, LENGTH, 100)
