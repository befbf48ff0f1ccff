//! How much a rebuilt image looks like the real one.

/// Images with a smaller error count as equal.
const MSE_MIN: f64 = 1e-10;
/// Width and height of the window over which structure is compared, in pixels.
const WINDOW: usize = 7;

/// Peak signal-to-noise ratio of images with values in [0, 1], in decibels.
pub(super) fn psnr(image: &[f64], truth: &[f64]) -> f64 {
    let square: f64 = image.iter().zip(truth).map(|(a, b)| (a - b).powi(2)).sum();
    let mse = square / truth.len().max(1) as f64;
    -10.0 * mse.max(MSE_MIN).log10()
}

/// Mean structural similarity of two square images with values in [0, 1]: 1 for equal ones.
///
/// Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with a flat window of 7 × 7 pixels.
pub(super) fn ssim(image: &[f64], truth: &[f64], side: usize) -> f64 {
    let window = WINDOW.min(side);
    let places = side - window + 1;
    let mut total = 0.0;
    for top in 0..places {
        for left in 0..places {
            total += window_ssim(image, truth, side, (top, left), window);
        }
    }
    total / (places * places) as f64
}

fn window_ssim(
    image: &[f64],
    truth: &[f64],
    side: usize,
    (top, left): (usize, usize),
    window: usize,
) -> f64 {
    const LUMINANCE: f64 = 0.01 * 0.01;
    const CONTRAST: f64 = 0.03 * 0.03;
    let (mut a, mut b, mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for row in top..top + window {
        for place in row * side + left..row * side + left + window {
            let (x, y) = (image[place], truth[place]);
            (a, b, aa, bb, ab) = (a + x, b + y, aa + x * x, bb + y * y, ab + x * y);
        }
    }
    let count = (window * window) as f64;
    let (a, b) = (a / count, b / count);
    let (aa, bb, ab) = (aa / count - a * a, bb / count - b * b, ab / count - a * b);
    ((2.0 * a * b + LUMINANCE) * (2.0 * ab + CONTRAST))
        / ((a * a + b * b + LUMINANCE) * (aa + bb + CONTRAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_images_are_perfect_and_others_are_not() {
        let image: Vec<f64> = (0..64).map(|place| f64::from(place) / 64.0).collect();
        let inverse: Vec<f64> = image.iter().map(|value| 1.0 - value).collect();
        assert!((ssim(&image, &image, 8) - 1.0).abs() < 1e-9);
        assert!(psnr(&image, &image) > 99.0);
        assert!(ssim(&inverse, &image, 8) < 0.1);
        let off: Vec<f64> = image.iter().map(|value| value + 0.1).collect();
        assert!((psnr(&off, &image) - 20.0).abs() < 1e-9, "an error of 0.1 everywhere is 20 dB");
    }
}
