"""Seeds of the published evaluation (Cherepanov et al. 2023), and the first seed of our data.

Each list holds the lowest hundred seeds of its colour in the published scenario. An evaluation plays every fourth of
them, or all.
"""

from __future__ import annotations

# fmt: off
RED_SEEDS: tuple[int, ...] = (
    2, 3, 6, 8, 9, 10, 11, 14, 15, 16, 17, 18, 20, 21, 25, 26, 27, 28, 29, 31, 38, 40, 41, 42, 45, 46, 49, 50, 51,
    52, 53, 54, 55, 58, 59, 60, 61, 63, 64, 67, 68, 70, 72, 73, 74, 77, 80, 82, 84, 86, 88, 89, 90, 91, 92, 97, 98,
    99, 100, 101, 103, 106, 108, 109, 113, 115, 116, 117, 120, 123, 124, 125, 126, 127, 128, 129, 133, 134, 136,
    139, 140, 142, 144, 145, 147, 148, 151, 152, 153, 154, 156, 157, 158, 159, 161, 164, 165, 170, 171, 173,
)
GREEN_SEEDS: tuple[int, ...] = (
    0, 1, 4, 5, 7, 12, 13, 19, 22, 23, 24, 30, 32, 33, 34, 35, 36, 37, 39, 43, 44, 47, 48, 56, 57, 62, 65, 66, 69,
    71, 75, 76, 78, 79, 81, 83, 85, 87, 93, 94, 95, 96, 102, 104, 105, 107, 110, 111, 112, 114, 118, 119, 121, 122,
    130, 131, 132, 135, 137, 138, 141, 143, 146, 149, 150, 155, 160, 162, 163, 166, 167, 168, 169, 172, 175, 176,
    177, 182, 183, 187, 190, 192, 193, 195, 199, 204, 206, 208, 209, 210, 212, 215, 216, 218, 219, 220, 221, 223,
    224, 225,
)
# fmt: on
EVERY = 4  # the published evaluation uses every fourth seed
FIRST_DATA_SEED = 1_000_000  # data uses seeds from here on, and evaluations none of them
