//! The IDX format of the MNIST family: a four-byte magic number, big-endian dimensions, raw bytes.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;

use super::{DataError, Dataset, IdxSource};

/// One IDX file of unsigned bytes.
struct IdxFile {
    dimensions: Vec<u64>,
    values: Vec<u8>,
}

pub(super) fn load(source: &IdxSource, examples_max: usize) -> Result<Dataset, DataError> {
    if source.classes < 2 || source.classes > 256 {
        return Err(DataError::Config {
            field: "classes".to_owned(),
            value: source.classes.to_string(),
            range: "between 2 and 256, as labels are bytes",
        });
    }
    let labels = read(&source.labels, 1..=1, "01")?;
    let images = read(&source.images, 2..=4, "02 to 04")?;
    if images.dimensions[0] != labels.dimensions[0] {
        return Err(DataError::CountMismatch {
            images_path: source.images.clone(),
            images: images.dimensions[0] as usize,
            labels_path: source.labels.clone(),
            labels: labels.values.len(),
        });
    }
    let num_records = labels.values.len().min(examples_max);
    if num_records == 0 || images.values.is_empty() {
        return Err(DataError::Empty { path: source.images.clone() });
    }
    // Not from the other dimensions, whose product only a file with records has proven small.
    let num_features = images.values.len() / labels.values.len();
    let mut classes = Vec::with_capacity(num_records);
    for (index, &label) in labels.values.iter().take(num_records).enumerate() {
        if u32::from(label) >= source.classes {
            return Err(DataError::LabelRange {
                path: source.labels.clone(),
                record: index + 1,
                label,
                classes: source.classes,
            });
        }
        classes.push(u32::from(label));
    }
    let mut pixels = images.values;
    pixels.truncate(num_records * num_features);
    pixels.shrink_to_fit();
    Ok(Dataset::from_bytes(pixels, num_features, classes, source.classes))
}

fn read(
    path: &Path,
    dimensions_allowed: std::ops::RangeInclusive<usize>,
    dimensions_wanted: &'static str,
) -> Result<IdxFile, DataError> {
    const UNSIGNED_BYTE: u8 = 8;
    let mut bytes = read_maybe_gzip(path)?;
    let magic: Vec<u8> = bytes.iter().take(4).copied().collect();
    let rank = match magic[..] {
        [0, 0, UNSIGNED_BYTE, rank] if dimensions_allowed.contains(&usize::from(rank)) => {
            usize::from(rank)
        }
        _ => {
            return Err(DataError::IdxMagic {
                path: path.to_owned(),
                found: magic,
                dimensions_wanted,
            });
        }
    };
    let header = 4 + 4 * rank;
    let dimensions: Vec<u64> = bytes
        .get(4..header)
        .unwrap_or_default()
        .chunks_exact(4)
        .map(|size| size.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
        .collect();
    let content = dimensions.iter().map(|&size| u128::from(size)).product::<u128>();
    let expected = header as u128 + content;
    if dimensions.len() != rank || expected != bytes.len() as u128 {
        return Err(DataError::IdxLength {
            path: path.to_owned(),
            dimensions,
            expected,
            found: bytes.len(),
        });
    }
    bytes.drain(..header);
    Ok(IdxFile { dimensions, values: bytes })
}

/// Reads a file whole, decompressing it where it starts as gzip does.
pub(super) fn read_maybe_gzip(path: &Path) -> Result<Vec<u8>, DataError> {
    const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
    let at = || PathBuf::from(path);
    let raw = fs::read(path).map_err(|source| DataError::Read { path: at(), source })?;
    if !raw.starts_with(&GZIP_MAGIC) {
        return Ok(raw);
    }
    let mut content = Vec::with_capacity(raw.len() * 2);
    match MultiGzDecoder::new(raw.as_slice()).read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(source) => Err(DataError::Gzip { path: at(), readable: content.len(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn images(count: u32) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 3];
        for size in [count, 2, 2] {
            bytes.extend(size.to_be_bytes());
        }
        bytes.extend((0..count * 4).map(|value| value as u8));
        bytes
    }

    fn labels(values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, 1];
        bytes.extend((values.len() as u32).to_be_bytes());
        bytes.extend(values);
        bytes
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    fn load_pair(image_bytes: &[u8], label_bytes: &[u8]) -> Result<Dataset, DataError> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let source = IdxSource {
            images: directory.path().join("images"),
            labels: directory.path().join("labels"),
            classes: 3,
        };
        fs::write(&source.images, image_bytes).expect("write");
        fs::write(&source.labels, label_bytes).expect("write");
        load(&source, 10)
    }

    #[test]
    fn plain_and_gzip_files_give_the_same_records() {
        let plain = load_pair(&images(3), &labels(&[0, 2, 1])).expect("valid");
        let packed = load_pair(&gzip(&images(3)), &gzip(&labels(&[0, 2, 1]))).expect("valid");
        for data in [plain, packed] {
            assert_eq!((data.len(), data.num_features(), data.num_classes()), (3, 4, 3));
            let (x, y) = data.batch(&[2, 0]).expect("indices in range");
            assert_eq!(y.to_vec1::<u32>().expect("u32"), [1, 0]);
            assert_eq!(x.to_vec2::<f32>().expect("f32")[0][1], 9.0 / 255.0);
        }
    }

    #[test]
    fn damaged_pairs_are_named() {
        let whole = gzip(&images(3));
        let good_labels = labels(&[0, 1, 2]);
        let cases: [(Vec<u8>, Vec<u8>, &str); 8] = [
            (whole[..whole.len() - 12].to_vec(), good_labels.clone(), "copy it again"),
            (images(2), good_labels.clone(), "2 images"),
            (images(3)[..20].to_vec(), good_labels.clone(), "needs 28"),
            (b"PNG!....".to_vec(), good_labels.clone(), "starts with [50, 4e, 47, 21]"),
            (Vec::new(), good_labels, "starts with []"),
            (images(3), labels(&[0, 3, 1]), "record 2: label 3"),
            (images(0), labels(&[]), "no records"),
            ([[0, 0, 8, 3], [0; 4], [0xff; 4], [0xff; 4]].concat(), labels(&[]), "no records"),
        ];
        for (image_bytes, label_bytes, wanted) in cases {
            let error = load_pair(&image_bytes, &label_bytes).map(|_| ()).expect_err(wanted);
            assert!(error.to_string().contains(wanted), "{error} lacks {wanted}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_an_error(
            header in prop::sample::select(vec![vec![], vec![0, 0, 8, 2], vec![0, 0, 8, 4], vec![0x1f, 0x8b]]),
            mut bytes in prop::collection::vec(prop::sample::select(vec![0_u8, 1, 2, 255]), 0..40),
        ) {
            bytes.splice(0..0, header);
            for other in [labels(&[]), labels(&[0, 1])] {
                if let Ok(data) = load_pair(&bytes, &other) {
                    prop_assert!(data.len() == 2 && data.num_features() > 0);
                }
                prop_assert!(load_pair(&images(2), &bytes).is_err());
            }
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_maybe_gzip(Path::new("/nowhere/images.gz")).expect_err("missing");
        assert!(error.to_string().contains("/nowhere/images.gz"), "{error}");
    }
}
