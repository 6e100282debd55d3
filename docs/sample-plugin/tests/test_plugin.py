"""The checks that every LeanTune method must pass, and what is true of this one."""

from leantune.testing import Subject, parametrize_with_checks


@parametrize_with_checks(["scale_tuning"])
def test_every_check(method, check):
    check(method)


def test_a_scale_for_every_output(tmp_path):
    subject = Subject("scale_tuning")
    model, _ = subject.stack().attach(subject.model(), None, subject.context(tmp_path))
    scales = [p.numel() for name, p in model.named_parameters() if name.endswith(".scale")]
    assert sum(scales) == 4 * (
        4 * 16 + 32 + 16
    )  # query, key, value and attention output, then up and down
