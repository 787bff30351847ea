from rlhf_cli.train.stopping import BestEvaluation


def test_the_lowest_loss_is_the_best_and_what_comes_after_is_counted():
    best = BestEvaluation()
    losses = [3.0, 2.0, 2.5, 2.0, float("nan"), 1.0]
    better = [best.note(step, {"loss": loss}) for step, loss in enumerate(losses)]
    assert better == [True, True, False, False, False, True]
    assert (best.step, best.waited) == (5, 0)


def test_it_is_kept_as_json():
    best = BestEvaluation()
    best.note(4, {"loss": 1.0})
    best.note(5, {"loss": 1.5})
    again = BestEvaluation(**best.state_dict())
    assert (again.step, again.values, again.waited) == (4, {"loss": 1.0}, 1)
