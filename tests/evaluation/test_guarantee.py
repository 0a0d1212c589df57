"""The guarantee against simulated worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from alignmask.evaluation.guarantee import Guarantee, find_guarantee, trusted
from alignmask.evaluation.matches import Matches, rank_within
from tests.evaluation.matched import made

PRECISION, CONFIDENCE = 0.9, 0.95


def world(
    rng: np.random.Generator, images: int, right_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Matches:
    """Images of 1 to 8 predictions. An image is good or bad as a whole, so its predictions are
    right or wrong together.

    right_of: (scores, a number in 0..1 for the image of each) -> which predictions are right.
    """
    image_N = np.repeat(np.arange(images), rng.integers(1, 9, images))
    scores_N = rng.random(len(image_N))
    right_N = right_of(scores_N, rng.random(images)[image_N])
    return made(scores_N, right_N * 0.8, image_N, np.zeros_like(image_N), [[8]] * images, 0.75)


def found_in(
    seed: int, images: int, right_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Guarantee:
    rng = np.random.default_rng(seed)
    chosen, tested = world(rng, images, right_of), world(rng, images, right_of)
    return find_guarantee(chosen, tested, precision=PRECISION, confidence=CONFIDENCE)


def repetitions(quick: int) -> pytest.MarkDecorator:
    """Quick and seeded in every run; 1,000 resamplings with --runslow."""
    return pytest.mark.parametrize("times", [quick, pytest.param(1000, marks=pytest.mark.slow)])


@repetitions(100)
def test_a_share_that_is_just_missed_is_hardly_ever_guaranteed(times: int) -> None:
    """The hardest case: at every threshold a share of exactly 0.9 is right, where more than 0.9
    would have to be shown."""
    wrong = sum(
        found_in(seed, 80, lambda _, image_N: image_N < PRECISION).threshold is not None
        for seed in range(times)
    )
    assert wrong <= binom.ppf(0.999, times, 1 - CONFIDENCE)


@repetitions(60)
def test_coverage_where_thresholds_matter(times: int) -> None:
    """The higher the score the more is right: the threshold that keeps the aim must nearly always
    be found above, and not far above, the true one."""

    def right_of(scores_N: np.ndarray, image_N: np.ndarray) -> np.ndarray:
        return image_N < np.minimum(0.5 + 0.8 * scores_N, 0.995)

    # Above s the share is the mean of the rule over s..1; a limit for each image can only raise it.
    truth = np.linspace(0, 1, 2001)
    share = np.cumsum(np.minimum(0.5 + 0.8 * truth, 0.995)[::-1])[::-1] / np.arange(
        len(truth), 0, -1
    )
    thresholds = [found_in(seed, 150, right_of).threshold for seed in range(times)]
    given = np.array([threshold for threshold in thresholds if threshold is not None])
    violations = int((share[np.searchsorted(truth, given)] < PRECISION).sum())
    assert violations <= binom.ppf(0.999, times, 1 - CONFIDENCE)
    assert len(given) > 0.8 * times
    assert np.median(given) < truth[np.argmax(share > PRECISION)] + 0.35


def test_what_depends_on_each_other_is_not_counted_twice() -> None:
    """The same 40 images of 1 prediction, or of 8 that are right or wrong together: those prove no
    more."""
    right_I = np.arange(40) % 20 > 0

    def copies(times: int) -> Matches:
        image_N = np.repeat(np.arange(40), times)
        return made(
            [0.9] * len(image_N),
            right_I[image_N] * 0.8,
            image_N,
            [0] * len(image_N),
            [[times]] * 40,
            0.75,
        )

    evidence = []
    for times in (1, 8):
        levels = np.linspace(0.01, 0.99, 99)
        found = [
            find_guarantee(copies(times), copies(times), precision=0.9, confidence=level)
            for level in levels
        ]
        evidence.append(sum(guarantee.threshold is not None for guarantee in found))
    assert 20 < evidence[0] < 99
    assert evidence[0] == evidence[1]


def test_the_capital_by_hand() -> None:
    """30 images with a right prediction each. On as many others, and one that is all wrong, the
    best bet puts 0.68 at risk: 30 log(1 + b / 9) + log(1 - b) is largest at b = 21 / 31. Then the
    capital grows by 1 + 0.68 / 9 an image."""
    matches = made([0.9] * 30, [0.8] * 30, range(30), [0] * 30, [[1]] * 30, 0.75)
    capital = (1 + 0.68 / 9) ** 30
    for confidence, supported in ((1 - 1.001 / capital, True), (1 - 0.999 / capital, False)):
        guarantee = find_guarantee(matches, matches, precision=0.9, confidence=confidence)
        assert (guarantee.threshold == 0.9) is supported
    assert (guarantee.most_per_image, guarantee.trusted, guarantee.right, guarantee.images) == (
        0,
        0,
        0,
        30,
    )


def levels(wrong: dict[float, int]) -> Matches:
    """60 images with a prediction of 0.9, one of 0.8, and 20 of 0.7; on so many images those of a
    score are wrong."""
    image_N, scores_N = np.repeat(np.arange(60), 22), np.tile([0.9, 0.8, *[0.7] * 20], 60)
    right_N = image_N >= np.array([wrong[score] for score in scores_N])
    return made(scores_N, right_N * 0.8, image_N, [0] * len(image_N), [[22]] * 60, 0.75)


def test_the_first_threshold_that_fails_ends_it() -> None:
    """0.7 would pass by itself, after 0.8 has failed: but each further test would be one more
    chance of an error."""
    chosen, tested = levels({0.9: 0, 0.8: 1, 0.7: 1}), levels({0.9: 0, 0.8: 30, 0.7: 0})
    assert find_guarantee(chosen, tested, precision=0.9, confidence=0.95).threshold == 0.9
    without = tested.select(tested.scores_N != 0.8)
    without_chosen = chosen.select(chosen.scores_N != 0.8)
    assert find_guarantee(without_chosen, without, precision=0.9, confidence=0.95).threshold == 0.7


def test_images_that_choose_prove_nothing() -> None:
    good, bad = levels({0.9: 0, 0.8: 0, 0.7: 0}), levels({0.9: 10, 0.8: 10, 0.7: 10})
    assert find_guarantee(good, bad, precision=0.9, confidence=0.95).threshold is None
    assert find_guarantee(good, good, precision=0.9, confidence=0.95).threshold == 0.7


def test_the_rule_that_is_tested_is_the_rule_that_is_applied() -> None:
    """What the guarantee counted is what `trusted` picks, image by image; per class, too."""
    rng = np.random.default_rng(5)
    image_N = np.sort(rng.integers(0, 120, 1500))
    class_N, scores_N = rng.integers(0, 2, 1500), rng.random(1500).round(2)
    order = np.lexsort((-scores_N, image_N))
    scores_N, class_N = scores_N[order], class_N[order]
    iou_N = 0.8 * (rng.random(1500) < 0.85 + 0.15 * scores_N)
    matches = made(scores_N, iou_N, image_N, class_N, [[20, 20]] * 120, 0.75)
    chosen = matches.subset(matches.image_ids[::3])  # fewer images: the limit matters on the others
    tested = matches.subset([i for i in matches.image_ids if i not in chosen.image_ids])
    for categories in ((None,), (3, 7)):
        guarantees = [
            find_guarantee(chosen, tested, precision=0.8, confidence=0.8, category_id=category_id)
            for category_id in categories
        ]
        assert all(guarantee.threshold is not None for guarantee in guarantees)
        counted = right = limited = 0
        for i in range(len(tested.image_ids)):
            image = tested.select(tested.image_N == i)
            kept_N = trusted(
                guarantees, image.scores_N, np.array(image.category_ids)[image.class_N]
            )
            counted, right = counted + kept_N.sum(), right + image.matched_N[kept_N].sum()
            limited += (image.scores_N >= guarantees[0].threshold).sum() > guarantees[
                0
            ].most_per_image
        assert counted == sum(guarantee.trusted for guarantee in guarantees)
        assert right == sum(guarantee.right for guarantee in guarantees)
        assert limited or categories != (None,)


def test_predictions_in_crowds_take_a_place_and_prove_nothing() -> None:
    """Ranks count all predictions of the image, as at the time of use."""
    image_N, scores_N = np.repeat(np.arange(50), 3), np.tile([0.9, 0.8, 0.7], 50)
    matches = made(scores_N, [0.8] * 150, image_N, [0] * 150, [[3]] * 50, 0.75)
    without = matches.select(matches.scores_N != 0.8)
    assert rank_within(without.image_N, without.scores_N).max() == 1
    guarantee = find_guarantee(without, without, precision=0.5, confidence=0.9)
    assert (guarantee.threshold, guarantee.most_per_image, guarantee.trusted) == (0.7, 3, 100)


def test_says_plainly_what_data_cannot_support() -> None:
    few = made([0.9] * 4, [0.8] * 4, [0, 1, 2, 3], [0] * 4, [[1, 1]] * 4, 0.75)
    guarantee = find_guarantee(few, few, precision=0.9, confidence=0.95)
    assert guarantee.describe().startswith(
        "4 images cannot support that 90 % of the predictions have an IoU of 0.75 or more"
    )
    none = find_guarantee(few, few, precision=0.9, confidence=0.95, category_id=7)
    assert none.threshold is None
    assert not trusted([guarantee, none], few.scores_N, np.full(4, 3)).any()
    many = made([0.9] * 90, [0.8] * 90, range(90), [0] * 90, [[1]] * 90, 0.75)
    text = find_guarantee(many, many, precision=0.9, confidence=0.95, category_id=3).describe(
        "cell"
    )
    assert text == (
        "score >= 0.9, the best 1 of an image: 90 % of the predictions of class cell have an IoU "
        "of 0.75 or more, "
        "with 95 % confidence (90 of 90 on the 90 images of the test)"
    )


@pytest.mark.parametrize("name", ["precision", "confidence"])
@pytest.mark.parametrize("value", [0, 1])
def test_shares_lie_between_0_and_1(name: str, value: float) -> None:
    few = made([0.9], [0.8], [0], [0], [[1]], 0.75)
    with pytest.raises(ValueError, match=f"guarantee: {name}: .* got {value}"):
        find_guarantee(few, few, **{"precision": 0.9, "confidence": 0.9, name: value})
