"""Prints are turned and shifted as is said."""

import numpy as np
from pose_robustness import moved


def test_turns_counter_clockwise_about_the_middle_then_shifts():
    image = np.full((1, 9, 9), 255, np.uint8)
    image[0, 4, 7] = 0  # right of the middle
    degrees, shift = np.array([90.0]), np.array([[2.0, 1.0]])
    (turned,) = moved(image, degrees, shift)
    assert np.argwhere(turned < 128).tolist() == [[1 + 1, 4 + 2]]
    np.testing.assert_array_equal(moved(image, np.zeros(1), np.zeros((1, 2))), image)
