from __future__ import annotations

from dataclasses import replace

import pytest

from onnx_tailor.errors import UsageError
from onnx_tailor.verify import Comparison, Greedy, OutputDifference, exceeded, parse_limits

FOUND = Comparison(
    reference="a",
    candidate="b",
    tokens=10,
    source="here",
    random=False,
    perplexity_reference=10.0,
    perplexity_candidate=12.0,
    kl_mean=0.1,
    kl_p99=0.5,
    kl_max=0.9,
    top1_agreement=0.8,
    top5_agreement=0.7,
    worst=(),
    greedy=Greedy(lengths=(3, 5), steps=32),
    outputs=(OutputDifference(name="logits", max_abs=2.0, max_rel=0.2, where=(0, 0)),),
    only_reference=(),
    only_candidate=(),
    decode_difference=0.01,
    decode_difference_reference=0.01,
)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ("kl=0.1", "kl=0.0999"),
        ("kl99=0.5", "kl99=0.4"),
        ("klmax=0.9", "klmax=0.8"),
        ("perplexity=1.2", "perplexity=1.19"),
        ("top1=0.8", "top1=0.81"),
        ("top5=0.7", "top5=0.71"),
        ("greedy=4", "greedy=4.1"),
        ("decode=0.01", "decode=0.009"),
        ("output=0.2", "output=0.1"),
    ],
)
def test_a_limit_itself_is_within(within: str, beyond: str) -> None:
    assert exceeded(FOUND, parse_limits([within])) == []
    (line,) = exceeded(FOUND, parse_limits([within, beyond]))
    assert line.startswith(beyond.partition("=")[0] + ": the ")


def test_nan_exceeds_every_limit() -> None:
    found = replace(FOUND, kl_mean=float("nan"), top1_agreement=float("nan"))
    assert len(exceeded(found, parse_limits(["kl=1e9", "top1=0"]))) == 2


def test_a_figure_that_the_models_lack_cannot_be_limited() -> None:
    with pytest.raises(UsageError, match=r"--limit kl: these models have no logits"):
        exceeded(replace(FOUND, kl_mean=None), parse_limits(["kl=1"]))
    with pytest.raises(UsageError, match=r"--limit greedy: these models have no cache"):
        exceeded(replace(FOUND, greedy=None), parse_limits(["greedy=1"]))


@pytest.mark.parametrize("setting", ["kl", "kl=", "kl=x", "kl=nan", "kk=1", "=1", "", "kl=-1", "top1=1.5"])
def test_a_malformed_limit_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=r"^--limit"):
        parse_limits([setting])


def test_a_share_in_percent_is_told() -> None:
    with pytest.raises(UsageError, match=r"top1=85: the top-1 agreement, 0 to 1 is never .* did you mean 0\.85\?"):
        parse_limits(["top1=85"])
