//! How fast updates are added, beside an addition of the same bytes in memory.

use std::{fs::File, hint::black_box, io::Read, time::Instant};

use tributary_privacy::lattice::{BITS_MAX, BITS_MIN, Lattice, PackedSum};

/// Repetitions, of which the best counts.
const REPEATS: usize = 40;

/// As the coordinator reads its files.
const PIECE_BYTES: usize = 256 * 1024;

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn best(mut run: impl FnMut()) -> f64 {
    let time = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| time(&mut run)).fold(f64::INFINITY, f64::min)
}

/// Prints the figures.
pub(crate) fn report(parameters: usize) {
    println!("adding one update of {parameters} parameters, milliseconds, best of {REPEATS}");
    println!(
        "{:>5} {:>10} {:>12} {:>12} {:>12} {:>14} {:>10} {:>10}",
        "bits",
        "MB",
        "same bytes",
        "in memory",
        "from a file",
        "GB/s of traffic",
        "ratio",
        "with file"
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    for bits in BITS_MIN..=BITS_MAX {
        let lattice = Lattice::new(1.0, bits).expect("a valid lattice");
        let values: Vec<i64> =
            (0..parameters as i64).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        let update = lattice.pack(&values);
        let mut sum = PackedSum::new(lattice, parameters);
        let in_memory = best(|| sum.add_chunk(0, black_box(&update)).expect("well formed"));

        let path = folder.path().join("update");
        std::fs::write(&path, &update).expect("writes");
        let mut piece = vec![0; PIECE_BYTES];
        let from_file = best(|| {
            let (mut file, mut offset) = (File::open(&path).expect("opens"), 0);
            loop {
                let length = file.read(&mut piece).expect("reads");
                if length == 0 {
                    break;
                }
                sum.add_chunk(offset, &piece[..length]).expect("well formed");
                offset += length;
            }
        });
        black_box(&sum);

        let addends: Vec<u32> = update
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four")))
            .collect();
        let mut plain = vec![0_u32; addends.len()];
        let same_bytes = best(|| {
            for (value, &addend) in plain.iter_mut().zip(black_box(&addends)) {
                *value = value.wrapping_add(addend);
            }
            black_box(&mut plain);
        });
        let traffic = 3.0 * update.len() as f64 / same_bytes / 1e9;
        println!(
            "{bits:>5} {:>10.2} {:>12.3} {:>12.3} {:>12.3} {traffic:>14.1} {:>10.2} {:>10.2}",
            update.len() as f64 / 1e6,
            same_bytes * 1e3,
            in_memory * 1e3,
            from_file * 1e3,
            same_bytes / in_memory,
            same_bytes / from_file,
        );
    }
}
