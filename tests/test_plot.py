"""The pictures of attention and anisotropy: what is drawn where, by the artists of the figure."""

import importlib
import io
import subprocess
import sys

import numpy as np
import pytest

import npkernels
import npkernels.lipschitz
import npkernels.plot

pytest.importorskip("matplotlib")

WORDS = ["the", "cat", "sat", "down"]


def weights(heads=3, queries=4, keys=4, seed=0):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(heads, queries, 8)), rng.normal(size=(heads, keys, 8))
    return npkernels.attention_weights(q, k, causal="bottom_right")


def texts(ticks):
    return [t.get_text() for t in ticks]


def panels(figure):
    """The panels of heads, without the bar of colours."""
    return [a for a in figure.axes if a.get_visible() and a.get_title().startswith("head")]


def test_a_panel_for_each_head():
    w = weights()
    figure = npkernels.plot.attention(w, WORDS, title="a $ b")
    assert [p.get_title() for p in panels(figure)] == ["head 0", "head 1", "head 2"]
    for panel, picture in zip(panels(figure), w, strict=True):
        (image,) = panel.images
        assert np.array_equal(image.get_array(), picture)
        assert image.get_clim() == (np.nextafter(0, 1), w.max())  # one scale
    assert texts(panels(figure)[0].get_yticklabels()) == WORDS
    assert texts(panels(figure)[2].get_xticklabels()) == WORDS
    assert figure.get_suptitle() == "a $ b"
    bars = [a for a in figure.axes if a not in panels(figure) and a.get_visible()]
    assert [b.get_ylabel() for b in bars] == ["weight"]
    figure.savefig(io.BytesIO(), format="png")


def test_colours_tell_zero_and_nan_from_small_weights():
    w = weights(1)
    w[0, 3, 0], w[0, 2, 0] = np.nan, 1e-9
    (panel,) = panels(npkernels.plot.attention(w))
    (image,) = panel.images
    rgba = image.to_rgba(image.get_array())
    grey, red = (tuple(int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)) for c in ("#e4e4e4", "#d1495b"))
    np.testing.assert_allclose(rgba[0, 1, :3], grey, atol=1e-6)  # in the future
    np.testing.assert_allclose(rgba[3, 0, :3], red, atol=1e-6)
    assert np.abs(rgba[2, 0, :3] - grey).max() > 0.02
    assert image.get_clim()[1] == np.nanmax(w)


def test_some_heads_in_any_order():
    w = weights(5)
    figure = npkernels.plot.attention(w, heads=[4, 0, -2])
    assert [p.get_title() for p in panels(figure)] == ["head 4", "head 0", "head 3"]
    assert [
        np.array_equal(p.images[0].get_array(), w[h]) for p, h in zip(panels(figure), [4, 0, 3], strict=True)
    ] == [True] * 3


def test_the_lowest_panels_bear_the_text():
    figure = npkernels.plot.attention(weights(5), WORDS)
    figure.draw_without_rendering()
    shown = [any(t.get_visible() and t.get_text() for t in p.get_xticklabels()) for p in panels(figure)]
    assert shown == [False, False, True, True, True]


def test_fewer_queries_are_the_last_tokens():
    w = weights(2, 2, 4)
    figure = npkernels.plot.attention(w, WORDS)
    assert texts(panels(figure)[0].get_yticklabels()) == ["sat", "down"]
    assert texts(panels(figure)[0].get_xticklabels()) == WORDS
    figure = npkernels.plot.attention(w)
    assert texts(panels(figure)[0].get_yticklabels()) == ["2", "3"]


def test_other_keys():
    figure = npkernels.plot.attention(weights(2, 2, 4), ["a", "b"], keys=WORDS)
    assert texts(panels(figure)[0].get_yticklabels()) == ["a", "b"]
    assert texts(panels(figure)[0].get_xticklabels()) == WORDS
    figure = npkernels.plot.attention(weights(2, 2, 4), keys=WORDS)
    assert texts(panels(figure)[0].get_yticklabels()) == ["0", "1"]


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 1, 4, 4)])
def test_shapes_and_kinds_of_weights(shape):
    w = weights(1).reshape(shape)
    for given in (w, w.tolist(), w.astype(np.float16)):
        assert len(panels(npkernels.plot.attention(given, WORDS))) == 1


def test_long_sequences_name_every_nth_token():
    w = np.full((1, 150, 300), 1 / 300)
    (panel,) = panels(npkernels.plot.attention(w))
    assert texts(panel.get_xticklabels()) == [str(i) for i in range(0, 300, 10)]
    assert texts(panel.get_yticklabels()) == [str(150 + i) for i in range(0, 150, 5)]


def segments(figure, head):
    """Lines of a head: (query, key) -> (alpha, colour)."""
    (panel,) = [a for a in figure.axes if a.collections]
    (lines,) = [c for c in panel.collections if c.get_label() == f"head {head}"]
    found = {}
    for ((x0, y0), (x1, y1)), colour in zip(lines.get_segments(), lines.get_colors(), strict=True):
        assert (x0, x1) == (0, 1)
        found[round(y0), round(y1)] = (colour[3], tuple(colour[:3]))
    return found


def test_lines_from_token_to_token():
    w = weights(2)
    figure = npkernels.plot.attention(w, WORDS, view="tokens", threshold=0.3)
    colours = set()
    for head in (0, 1):
        found = segments(figure, head)
        strong = w[head] >= 0.3 * w.max()
        assert set(found) == {(int(i), int(j)) for i, j in np.argwhere(strong)}
        assert len(found) < (w[head] > 0).sum()  # some are below the threshold
        for (i, j), (alpha, colour) in found.items():
            assert alpha == pytest.approx(w[head, i, j] / w.max())
            colours.add((head, colour))
    assert len(colours) == len({colour for _, colour in colours}) == 2
    (panel,) = [a for a in figure.axes if a.collections]
    words = [(t.get_text(), t.get_position()[0] < 0.5) for t in panel.texts]
    assert [text for text, left in words if left] == ["queries", *WORDS]
    assert [text for text, left in words if not left] == ["keys", *WORDS]
    heights = {t.get_text(): t.get_position()[1] for t in panel.texts if t.get_position()[0] < 0}
    assert [heights[word] for word in WORDS] == [0, 1, 2, 3]
    (legend,) = figure.legends
    assert texts(legend.get_texts()) == ["head 0", "head 1"]
    figure.savefig(io.BytesIO(), format="png")


def test_lines_of_heads_do_not_hide_one_another():
    w = np.ones((4, 1, 1))
    figure = npkernels.plot.attention(w, view="tokens")
    (panel,) = [a for a in figure.axes if a.collections]
    heights = [c.get_segments()[0][0, 1] for c in panel.collections]
    assert len({round(h, 3) for h in heights}) == 4
    assert max(map(abs, heights)) < 0.5


def test_queries_stand_beside_their_own_keys():
    figure = npkernels.plot.attention(weights(1, 2, 4), WORDS, view="tokens", threshold=0)
    assert {query for query, _ in segments(figure, 0)} == {2, 3}
    assert not figure.legends  # one head needs no names


def test_nan_and_nothing_have_no_lines():
    w = np.zeros((1, 2, 2))
    w[0, 1, 0] = np.nan
    assert segments(npkernels.plot.attention(w, view="tokens"), 0) == {}
    assert len(panels(npkernels.plot.attention(w))) == 1


@pytest.mark.parametrize("count", [1, 8, 9, 30])
def test_colours_of_heads_differ(count):
    figure = npkernels.plot.attention(np.ones((count, 2, 2)), view="tokens")
    (panel,) = [a for a in figure.axes if a.collections]
    assert len({tuple(c.get_colors()[0]) for c in panel.collections}) == count


def test_white_space_can_be_seen():
    w = weights(1)
    (panel,) = panels(npkernels.plot.attention(w, [" ", "\n", "a\tb", " $x$"]))
    assert texts(panel.get_xticklabels()) == ["␣", "↵", "a⇥b", " $x$"]
    assert not any(t.get_parse_math() for t in panel.get_xticklabels())


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (
            ValueError,
            r"weights has shape \(2, 3, 4, 4\); expected .* weights\[b\]",
            {"weights": np.ones((2, 3, 4, 4))},
        ),
        (
            ValueError,
            r"weights has shape \(3, 0, 4\); expected at least one",
            {"weights": np.ones((3, 0, 4))},
        ),
        (TypeError, r"weights has dtype complex128", {"weights": np.ones((2, 2), complex)}),
        (ValueError, r"tokens has 3 entries, weights have 4 queries and 4 keys", {"tokens": WORDS[:3]}),
        (TypeError, r"tokens is a str", {"tokens": "abcd"}),
        (ValueError, r"keys has 3 entries; expected 4", {"keys": WORDS[:3]}),
        (ValueError, r"tokens has 2 entries; expected 4", {"tokens": ["a", "b"], "keys": WORDS}),
        (ValueError, r"view is 'head'; expected one of 'heads', 'tokens'", {"view": "head"}),
        (ValueError, r"heads is \[3\]; expected numbers from 0 to 2", {"heads": [3]}),
        (ValueError, r"heads is \[\]", {"heads": []}),
        (TypeError, r"heads is 0; expected a sequence of integers", {"heads": 0}),
        (TypeError, r"heads is \[0.5\]", {"heads": [0.5]}),
        (TypeError, r"heads is '01'", {"heads": "01"}),
        (TypeError, r"tokens is a int; expected a sequence of str", {"tokens": 4}),
        (ValueError, r"threshold is 2", {"threshold": 2}),
        (TypeError, r"threshold is 'a'", {"threshold": "a"}),
    ],
)
def test_wrong_arguments(error, message, options):
    with pytest.raises(error, match=r"^plot.attention: " + message):
        npkernels.plot.attention(**{"weights": weights(), **options})


def test_without_matplotlib(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ImportError, match=r"npkernels.plot needs matplotlib 3.8 or newer: pip install"):
        npkernels.plot.attention(weights())
    with pytest.raises(ImportError, match=r"npkernels.plot needs matplotlib 3.8 or newer: pip install"):
        npkernels.plot.anisotropy(report())


def report(**slopes):
    every = {kind: np.ones((2, 3)) for kind in ("natural", "random", "adversarial")}
    return npkernels.lipschitz.Anisotropy({**every, **slopes}, np.ones(3), np.ones(3))


def test_slopes_that_have_no_place_are_counted():
    some = np.array([[0.0, 2, np.inf], [np.nan, 3, 4]])
    ax = npkernels.plot.anisotropy(report(random=some, adversarial=0 * np.ones((2, 3))), title="loss")
    assert texts(ax.get_yticklabels()) == ["natural", "random (1 of 0, 2 not finite)", "adversarial (6 of 0)"]
    assert [len(c.get_offsets()) for c in ax.collections] == [6, 3, 0]
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()
    importlib.import_module("matplotlib.pyplot").close(ax.figure)


def test_anisotropy_draws_where_it_is_told():
    panel = importlib.import_module("matplotlib.figure").Figure().subplots()
    assert npkernels.plot.anisotropy(report(), ax=panel) is panel


def test_anisotropy_refuses():
    with pytest.raises(TypeError, match=r"plot.anisotropy: report is a dict; expected what lipschitz"):
        npkernels.plot.anisotropy({})


def test_importing_npkernels_does_not_import_matplotlib():
    code = "import sys, npkernels.plot; print(any(m.startswith('matplotlib') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
