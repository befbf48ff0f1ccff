//! Degrees and thresholds of the sparse graph, as a table.
//!
//! Origin: the project's reference table `secagg_graph.csv`, computed after Bell et al. 2020
//! (arXiv/ePrint 2020/704, theorems 3.10 and 5.1): the smallest even degree `k` of a Harary graph
//! over a uniformly random order, and thresholds `t`, with which, but for the table's statistical
//! error, no honest agent has `t` corrupt neighbours, the honest survivors stay connected, enough
//! neighbours survive to reconstruct, and (malicious coordinator) no two disjoint answers reach `t`.

use super::Adversary;

/// One cell: the degree and the smallest and largest threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    /// Neighbours of each member.
    pub(super) neighbours: u32,
    /// The smallest secure threshold.
    pub(super) threshold_min: u32,
    /// The largest threshold that survives the dropouts.
    pub(super) threshold_max: u32,
}

/// Cohort sizes of the columns.
const SIZES: [u32; 9] = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
/// Tolerated corrupt shares of the cohort.
const CORRUPT: [f64; 4] = [0.05, 0.1, 0.2, 0.333];
/// Tolerated dropouts as shares of the cohort.
const DROPOUT: [f64; 3] = [0.05, 0.1, 0.3];
/// Fractions that differ by less are the same.
const TOLERANCE: f64 = 1e-9;

/// The first cell at or above every argument; `None` if the table ends before or holds no graph.
///
/// Rounding each of them up is safe: a larger cohort, more corruption and more dropouts are each
/// the harder case.
pub(super) fn look_up(
    cohort_size: u32,
    corrupt_max: f64,
    dropout_max: f64,
    adversary: Adversary,
) -> Option<Cell> {
    let column = SIZES.iter().position(|&size| cohort_size <= size)?;
    let corrupt = CORRUPT.iter().position(|&share| corrupt_max <= share + TOLERANCE)?;
    let dropout = DROPOUT.iter().position(|&share| dropout_max <= share + TOLERANCE)?;
    let table = match adversary {
        Adversary::SemiHonest => &SEMI_HONEST,
        Adversary::MaliciousCoordinator => &MALICIOUS,
    };
    let (neighbours, threshold_min, threshold_max) = table[corrupt][dropout][column];
    (neighbours > 0).then_some(Cell { neighbours, threshold_min, threshold_max })
}

/// Cells `(k, t_min, t_max)` by corrupt share, dropout share and cohort size; 0 where none is.
type Table = [[[(u32, u32, u32); 9]; 3]; 4];

const SEMI_HONEST: Table = [
    [
        [
            (4, 2, 3),
            (6, 3, 4),
            (12, 6, 7),
            (20, 11, 12),
            (28, 16, 17),
            (30, 17, 18),
            (30, 18, 18),
            (32, 19, 19),
            (34, 20, 20),
        ],
        [
            (4, 2, 2),
            (8, 3, 3),
            (16, 6, 7),
            (24, 11, 12),
            (32, 17, 17),
            (36, 19, 19),
            (38, 20, 20),
            (40, 21, 21),
            (42, 22, 22),
        ],
        [
            (8, 2, 2),
            (18, 3, 4),
            (26, 6, 7),
            (38, 11, 11),
            (58, 20, 20),
            (66, 23, 23),
            (70, 25, 25),
            (76, 27, 27),
            (80, 29, 29),
        ],
    ],
    [
        [
            (4, 3, 3),
            (8, 6, 6),
            (16, 11, 11),
            (26, 17, 17),
            (32, 21, 21),
            (38, 24, 25),
            (40, 26, 26),
            (42, 27, 27),
            (42, 27, 27),
        ],
        [
            (6, 3, 4),
            (12, 6, 7),
            (22, 11, 12),
            (34, 19, 20),
            (42, 24, 24),
            (48, 27, 28),
            (50, 28, 29),
            (52, 30, 30),
            (54, 31, 31),
        ],
        [
            (10, 3, 4),
            (22, 6, 7),
            (34, 11, 12),
            (54, 21, 21),
            (76, 31, 31),
            (88, 36, 36),
            (98, 40, 40),
            (106, 43, 43),
            (108, 44, 44),
        ],
    ],
    [
        [
            (6, 5, 5),
            (14, 11, 12),
            (26, 20, 21),
            (38, 28, 28),
            (48, 34, 35),
            (52, 37, 37),
            (56, 40, 40),
            (58, 41, 41),
            (62, 44, 44),
        ],
        [
            (8, 5, 6),
            (16, 11, 11),
            (32, 21, 22),
            (46, 30, 30),
            (60, 39, 39),
            (68, 44, 44),
            (70, 45, 45),
            (78, 50, 50),
            (80, 51, 51),
        ],
        [
            (12, 5, 6),
            (26, 11, 11),
            (48, 21, 21),
            (80, 38, 38),
            (120, 57, 57),
            (140, 67, 67),
            (160, 76, 77),
            (172, 82, 82),
            (182, 87, 87),
        ],
    ],
    [
        [
            (8, 7, 7),
            (20, 17, 18),
            (34, 29, 29),
            (50, 40, 40),
            (70, 54, 54),
            (78, 60, 60),
            (86, 66, 66),
            (92, 70, 70),
            (92, 70, 70),
        ],
        [
            (10, 7, 8),
            (22, 17, 17),
            (42, 32, 32),
            (66, 47, 48),
            (90, 64, 64),
            (102, 72, 72),
            (112, 79, 79),
            (124, 87, 87),
            (126, 88, 88),
        ],
        [
            (14, 7, 8),
            (32, 17, 17),
            (64, 34, 34),
            (116, 63, 64),
            (194, 106, 106),
            (252, 138, 138),
            (298, 163, 163),
            (342, 186, 186),
            (360, 196, 196),
        ],
    ],
];

const MALICIOUS: Table = [
    [
        [
            (4, 3, 3),
            (8, 6, 6),
            (16, 11, 11),
            (30, 21, 21),
            (44, 31, 31),
            (52, 37, 37),
            (56, 40, 40),
            (58, 41, 41),
            (62, 44, 44),
        ],
        [
            (6, 4, 4),
            (14, 9, 9),
            (26, 16, 16),
            (42, 27, 27),
            (66, 44, 44),
            (78, 52, 52),
            (84, 56, 56),
            (90, 60, 60),
            (96, 64, 64),
        ],
        [
            (14, 8, 8),
            (34, 19, 19),
            (66, 36, 36),
            (116, 64, 64),
            (212, 119, 119),
            (314, 179, 179),
            (394, 225, 225),
            (474, 271, 271),
            (522, 299, 299),
        ],
    ],
    [
        [
            (6, 5, 5),
            (10, 8, 8),
            (22, 17, 17),
            (40, 30, 30),
            (56, 42, 42),
            (66, 49, 49),
            (70, 52, 52),
            (76, 56, 56),
            (80, 59, 59),
        ],
        [
            (8, 6, 6),
            (16, 11, 11),
            (32, 22, 22),
            (56, 39, 39),
            (82, 57, 57),
            (96, 67, 67),
            (106, 74, 74),
            (116, 81, 81),
            (122, 85, 85),
        ],
        [
            (16, 10, 10),
            (36, 21, 21),
            (72, 42, 42),
            (134, 78, 78),
            (276, 164, 164),
            (414, 247, 247),
            (552, 330, 330),
            (704, 421, 421),
            (778, 465, 465),
        ],
    ],
    [
        [
            (8, 7, 7),
            (16, 14, 14),
            (32, 27, 27),
            (52, 42, 42),
            (76, 60, 60),
            (90, 71, 71),
            (102, 80, 80),
            (110, 86, 86),
            (114, 89, 89),
        ],
        [
            (10, 8, 8),
            (22, 17, 17),
            (42, 32, 32),
            (76, 57, 57),
            (116, 86, 86),
            (140, 104, 104),
            (158, 117, 117),
            (172, 127, 127),
            (184, 136, 136),
        ],
        [
            (18, 12, 12),
            (42, 27, 27),
            (82, 52, 52),
            (162, 102, 102),
            (376, 239, 239),
            (642, 409, 409),
            (986, 628, 628),
            (1482, 944, 944),
            (1790, 1140, 1140),
        ],
    ],
    [
        [
            (10, 9, 9),
            (22, 20, 20),
            (42, 37, 37),
            (68, 58, 58),
            (112, 93, 93),
            (138, 114, 114),
            (154, 127, 127),
            (168, 138, 138),
            (178, 146, 146),
        ],
        [
            (12, 10, 10),
            (28, 23, 23),
            (54, 44, 44),
            (98, 78, 78),
            (170, 134, 134),
            (218, 171, 171),
            (258, 202, 202),
            (294, 230, 230),
            (314, 245, 245),
        ],
        [
            (0, 0, 0),
            (48, 33, 33),
            (94, 64, 64),
            (188, 128, 128),
            (468, 318, 318),
            (930, 632, 632),
            (1792, 1219, 1219),
            (3992, 2715, 2715),
            (6780, 4611, 4611),
        ],
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_found_at_or_above_the_arguments() {
        let cell = |neighbours, threshold_min, threshold_max| {
            Some(Cell { neighbours, threshold_min, threshold_max })
        };
        let semi_honest = Adversary::SemiHonest;
        let malicious = Adversary::MaliciousCoordinator;
        assert_eq!(look_up(100, 0.1, 0.1, semi_honest), cell(22, 11, 12));
        assert_eq!(look_up(101, 0.06, 0.1, malicious), cell(56, 39, 39));
        assert_eq!(look_up(10_000, 0.333, 0.3, malicious), cell(6780, 4611, 4611));
        assert_eq!(look_up(1000, 0.0, 0.0, semi_honest), cell(30, 17, 18));
        assert_eq!(look_up(20, 0.333, 0.3, malicious), None);
        assert_eq!(look_up(10_001, 0.1, 0.1, semi_honest), None);
        assert_eq!(look_up(100, 0.34, 0.1, semi_honest), None);
        assert_eq!(look_up(100, 0.1, 0.31, semi_honest), None);
        assert_eq!(look_up(100, f64::NAN, 0.1, semi_honest), None);
    }

    #[test]
    fn every_cell_is_consistent() {
        for (table, malicious) in [(&SEMI_HONEST, false), (&MALICIOUS, true)] {
            for &(neighbours, threshold_min, threshold_max) in table.iter().flatten().flatten() {
                assert!(neighbours % 2 == 0 && threshold_min <= threshold_max);
                assert!(threshold_max <= neighbours);
                // Two disjoint answers below the threshold each.
                assert!(neighbours == 0 || !malicious || 2 * threshold_min > neighbours);
            }
        }
    }
}
