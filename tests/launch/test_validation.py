"""A validation split: its scores beside those on the test data."""

import csv


def test_the_scores_on_validation_samples_are_in_the_records_and_in_the_result(carried_out):
    result, records, _ = carried_out("evaluate.validation=0.2", "evaluate.every=2")
    assert [*result.metrics] == ["validation_loss", "validation_accuracy"]
    assert 0 <= result.metrics["validation_accuracy"] <= 1
    assert [record.metrics is not None for record in records] == [False, True, False, True, True]
    with (result.folder / "metrics.csv").open() as file:
        last = [*csv.DictReader(file)][-1]
    assert float(last["validation_loss"]) == result.metrics["validation_loss"]
    assert float(last["accuracy"]) == result.accuracy


def test_the_average_of_the_model_has_them_too(carried_out):
    result, *_ = carried_out("evaluate.validation=0.2", "ema.reference_batch=8")
    assert "ema_validation_accuracy" in result.metrics


def test_what_is_held_out_is_not_trained_on(carried_out):
    assert carried_out()[0].digest != carried_out("evaluate.validation=0.2")[0].digest
