//! Pictures inside the page.

use std::io::Write;

use data_encoding::BASE64;
use flate2::{Compression, Crc, write::ZlibEncoder};
use thiserror::Error;

use super::html::{escape, push};

/// Small pictures are shown at least this wide, with visible pixels.
const WIDTH_SHOWN_MIN: u32 = 96;

/// A picture with a line below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    caption: String,
    width: u32,
    png: Vec<u8>,
}

/// Says why pixels are no picture.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{pixels} bytes are no picture of {width} by {height} pixels with {channels} bytes each")]
pub struct PictureError {
    /// Bytes given.
    pub pixels: usize,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes a pixel.
    pub channels: usize,
}

impl Picture {
    /// A gray picture.
    ///
    /// - `pixels`: row by row from the top, 0 black to 255 white
    ///
    /// # Errors
    /// [`PictureError`] if the number of pixels does not fit.
    pub fn gray(
        caption: impl Into<String>,
        width: u32,
        height: u32,
        pixels: &[u8],
    ) -> Result<Self, PictureError> {
        Ok(Self { caption: caption.into(), width, png: png(width, height, 1, pixels)? })
    }

    /// A colour picture.
    ///
    /// - `pixels`: row by row from the top: red, green, blue
    ///
    /// # Errors
    /// [`PictureError`] if the number of pixels does not fit.
    pub fn rgb(
        caption: impl Into<String>,
        width: u32,
        height: u32,
        pixels: &[u8],
    ) -> Result<Self, PictureError> {
        Ok(Self { caption: caption.into(), width, png: png(width, height, 3, pixels)? })
    }

    /// The picture as a PNG file.
    #[must_use]
    pub fn png(&self) -> &[u8] {
        &self.png
    }

    pub(super) fn write(&self, html: &mut String) {
        let caption = escape(&self.caption);
        push(
            html,
            format_args!(
                "<figure class=\"picture\"><img width=\"{}\" alt=\"{caption}\" \
                 src=\"data:image/png;base64,{}\"><figcaption>{caption}</figcaption></figure>",
                self.width.max(WIDTH_SHOWN_MIN),
                BASE64.encode(&self.png)
            ),
        );
    }
}

/// A PNG of 8 bits a channel, without filters.
///
/// Source: the PNG specification, third edition (W3C 2025), sections 5 and 11.
fn png(width: u32, height: u32, channels: usize, pixels: &[u8]) -> Result<Vec<u8>, PictureError> {
    let row = (width as usize).checked_mul(channels);
    let expected = row.and_then(|row| row.checked_mul(height as usize));
    let row = match (row, expected) {
        (Some(row), Some(expected)) if row > 0 && expected > 0 && expected == pixels.len() => row,
        _ => return Err(PictureError { pixels: pixels.len(), width, height, channels }),
    };
    const TRUECOLOUR: u8 = 2;
    let colour_type = if channels == 3 { TRUECOLOUR } else { 0 };
    let mut header = Vec::with_capacity(13);
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, colour_type, 0, 0, 0]);
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in pixels.chunks(row) {
        // Each row says how it is filtered: not at all.
        encoder.write_all(&[0]).and_then(|()| encoder.write_all(row)).expect("memory takes all");
    }
    let data = encoder.finish().expect("memory takes all");
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(data);
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(kind);
        file.extend(data);
        file.extend(crc.sum().to_be_bytes());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_png_has_its_size_and_pixels() {
        let picture = Picture::gray("gray", 3, 2, &[0, 10, 20, 30, 40, 50]).expect("six pixels");
        let file = picture.png();
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&file[12..24], b"IHDR\0\0\0\x03\0\0\0\x02");
        assert_eq!(
            &file[file.len() - 8..],
            b"IEND\xaeB`\x82",
            "the checksum that every PNG ends with"
        );
        let start = file.windows(4).position(|kind| kind == b"IDAT").expect("pixels") + 4;
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&file[start..]).read_to_end(&mut rows).expect("whole");
        assert_eq!(rows, [0, 0, 10, 20, 0, 30, 40, 50]);
        let mut html = String::new();
        picture.write(&mut html);
        assert!(html.contains("data:image/png;base64,iVBORw0KGgo"), "{html}");
    }

    #[test]
    fn wrong_sizes_are_named() {
        assert!(Picture::rgb("", 2, 2, &[0; 12]).is_ok());
        for (width, height, pixels) in [(2, 2, 3), (0, 0, 0), (u32::MAX, u32::MAX, 4)] {
            let error = Picture::gray("", width, height, &vec![0; pixels]).expect_err("wrong");
            assert_eq!((error.pixels, error.width), (pixels, width));
        }
    }
}
