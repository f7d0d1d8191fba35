"""The shipped verdicts follow from the shipped runs, as far as summaries decide."""

from train.findings.base import all_findings
from train.findings.rejudge import rejudged
from train.findings.status import shipped


def test_the_shipped_verdicts_follow_from_the_shipped_runs():
    found = shipped()
    again = rejudged(found)
    assert again == found
    # Of checks that can't be judged from summaries the text stands; tampering with the others shows.
    tampered = {name: {**one, "checks": [{**c, "text": "?"} for c in one["checks"]]} for name, one in found.items()}
    known = rejudged({name: tampered[name] for name in ("qk_norm", "decay_value", "logit_divergence")})
    assert known["qk_norm"]["checks"] == found["qk_norm"]["checks"]
    assert known["decay_value"]["checks"] == found["decay_value"]["checks"]
    assert {c["text"] for c in known["logit_divergence"]["checks"]} == {"?"}
    assert len(found) <= len(all_findings())
