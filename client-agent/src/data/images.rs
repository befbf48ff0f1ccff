//! Image folders: one subfolder a class, of PNG and JPEG files.

use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, ImageReader};

use super::{DataError, Dataset, ImagesSource};

/// Pixels of one image, at most, before anything is decoded.
const PIXELS_MAX: u64 = 1 << 24;

pub(super) fn load(source: &ImagesSource, examples_max: usize) -> Result<Dataset, DataError> {
    validate(source)?;
    let mut files = Vec::new();
    for (class, label) in source.classes.iter().zip(0..) {
        let folder = source.path.join(class);
        for file in image_files(&folder)? {
            files.push((file, label));
        }
    }
    files.truncate(examples_max);
    if files.is_empty() {
        return Err(DataError::Empty { path: source.path.clone() });
    }
    let image_len = (source.height * source.width * source.channels) as usize;
    let mut pixels = Vec::with_capacity(files.len() * image_len);
    let mut labels = Vec::with_capacity(files.len());
    for (file, label) in files {
        pixels.extend(read(&file, source)?);
        labels.push(label);
    }
    Ok(Dataset::from_bytes(pixels, image_len, labels, source.classes.len() as u32))
}

fn validate(source: &ImagesSource) -> Result<(), DataError> {
    let config = |field: &str, value: String, range| {
        Err(DataError::Config { field: field.to_owned(), value, range })
    };
    if source.classes.len() < 2 {
        return config("classes", format!("{:?}", source.classes), "at least two folder names");
    }
    let outside =
        |class: &&String| Path::new(class).file_name().is_none_or(|it| it != class.as_str());
    if let Some(class) = source.classes.iter().find(outside) {
        return config("classes", class.clone(), "names of folders within `path`");
    }
    for (field, value) in [("height", source.height), ("width", source.width)] {
        if !(1..=1 << 14).contains(&value) {
            return config(field, value.to_string(), "between 1 and 2^14");
        }
    }
    if ![1, 3].contains(&source.channels) {
        return config("channels", source.channels.to_string(), "1 (grey) or 3 (red, green, blue)");
    }
    Ok(())
}

/// The files of a class in the order of their names; other files are passed over.
fn image_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().map(|it| it.to_string_lossy().to_lowercase());
        if matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// One image's bytes, `[height, width, channels]`.
fn read(path: &Path, source: &ImagesSource) -> Result<Vec<u8>, DataError> {
    let damaged = |error| DataError::Image { path: path.to_owned(), source: error };
    let unreadable = |source| DataError::Read { path: path.to_owned(), source };
    let open = || ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let format = open().map_err(unreadable)?.format();
    if !matches!(format, Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err(DataError::ImageFormat { path: path.to_owned() });
    }
    let (width, height) = open().map_err(unreadable)?.into_dimensions().map_err(damaged)?;
    let fits = u64::from(width) * u64::from(height) <= PIXELS_MAX;
    if !fits || (height, width) != (source.height, source.width) {
        return Err(DataError::ImageSize {
            path: path.to_owned(),
            found: [height, width],
            expected: [source.height, source.width],
        });
    }
    let image: DynamicImage = open().map_err(unreadable)?.decode().map_err(damaged)?;
    Ok(match source.channels {
        1 => image.into_luma8().into_raw(),
        _ => image.into_rgb8().into_raw(),
    })
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, RgbImage};

    use super::*;

    fn source(folder: &Path, channels: u32) -> ImagesSource {
        ImagesSource {
            path: folder.to_owned(),
            classes: vec!["cat".to_owned(), "dog".to_owned()],
            height: 2,
            width: 3,
            channels,
        }
    }

    /// Two cats and a dog.
    fn folder() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temporary directory");
        for class in ["cat", "dog"] {
            std::fs::create_dir(directory.path().join(class)).expect("makes");
        }
        let grey = GrayImage::from_raw(3, 2, vec![0, 10, 20, 30, 40, 50]).expect("fits");
        grey.save(directory.path().join("cat/2.png")).expect("writes");
        let colour = RgbImage::from_raw(3, 2, (0..18).collect()).expect("fits");
        colour.save(directory.path().join("cat/1.png")).expect("writes");
        let flat = RgbImage::from_pixel(3, 2, image::Rgb([200, 200, 200]));
        flat.save(directory.path().join("dog/a.JPEG")).expect("writes");
        std::fs::write(directory.path().join("dog/notes.txt"), "not an image").expect("writes");
        directory
    }

    #[test]
    fn folders_are_classes_and_files_are_in_the_order_of_their_names() {
        let folder = folder();
        let data = load(&source(folder.path(), 3), usize::MAX).expect("valid");
        assert_eq!((data.len(), data.num_features(), data.labels()), (3, 18, &[0, 0, 1][..]));
        let first: Vec<f32> = (0..18).map(|value| value as f32 / 255.0).collect();
        assert_eq!(data.features(0), first);
        assert!(data.features(2).iter().all(|value| (value - 200.0 / 255.0).abs() < 0.02));
        let grey = load(&source(folder.path(), 1), 2).expect("valid");
        assert_eq!((grey.len(), grey.num_features()), (2, 6));
        assert_eq!(grey.features(1)[5], 50.0 / 255.0);
    }

    #[test]
    fn images_that_cannot_be_used_are_named() {
        let png = std::fs::read(folder().path().join("cat/1.png")).expect("reads");
        let large = tempfile::NamedTempFile::with_suffix(".png").expect("temporary file");
        RgbImage::from_pixel(4, 4, image::Rgb([1, 2, 3])).save(large.path()).expect("writes");
        for (bytes, wanted) in [
            (png[..png.len() / 2].to_vec(), "cannot be decoded"),
            (b"GIF89a".to_vec(), "neither PNG nor JPEG"),
            (Vec::new(), "cannot be decoded"),
            (std::fs::read(large.path()).expect("reads"), "has 4 by 4 pixels"),
        ] {
            let folder = folder();
            std::fs::write(folder.path().join("dog/b.png"), bytes).expect("writes");
            let error = load(&source(folder.path(), 3), 9).map(|_| ()).expect_err(wanted);
            assert!(error.to_string().contains(wanted), "{wanted}: {error}");
            assert!(error.to_string().contains("b.png"), "{error}");
        }
        let folder = folder();
        for (changed, wanted) in [
            (ImagesSource { channels: 2, ..source(folder.path(), 3) }, "channels"),
            (ImagesSource { height: 0, ..source(folder.path(), 3) }, "height"),
            (ImagesSource { classes: vec![], ..source(folder.path(), 3) }, "classes"),
            (
                ImagesSource {
                    classes: vec!["cat".into(), "../x".into()],
                    ..source(folder.path(), 3)
                },
                "../x",
            ),
            (
                ImagesSource {
                    classes: vec!["cat".into(), "cow".into()],
                    ..source(folder.path(), 3)
                },
                "cow",
            ),
        ] {
            let error = load(&changed, 9).map(|_| ()).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
