//! Every layer against the tensor library's own operations, example by example.

use candle_core::{D, Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::model::{ClippingError, with_elements};

const EXAMPLES: usize = 12;
const TOLERANCE: f32 = 1e-4;

/// A small network written twice: with our layers and with the library's.
struct Case<'a, Ours, Stock> {
    /// Shape of each parameter, in flat order.
    shapes: &'a [&'a [usize]],
    /// `[EXAMPLES, ...]`.
    inputs: Tensor,
    /// Outputs from parameters and inputs; `Use` records.
    ours: Ours,
    /// The same with the library's operations.
    stock: Stock,
}

/// Hands out recordings for parameters by their position in the list of shapes.
struct Use {
    tape: Tape,
    spans: Vec<Range<usize>>,
}

impl Use {
    fn of(&self, weight: usize, bias: Option<usize>) -> Option<Recording> {
        let spans = Spans {
            weight: self.spans[weight].clone(),
            bias: bias.map(|bias| self.spans[bias].clone()),
        };
        Some(Recording { tape: self.tape.clone(), spans })
    }
}

fn uniform(source: &mut Xoshiro256PlusPlus, shape: &[usize], bound: f32) -> Tensor {
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| source.random_range(-bound..bound)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("sizes agree")
}

/// Inputs of growing size, so that some gradients are clipped and some are not.
fn growing(source: &mut Xoshiro256PlusPlus, shape: &[usize]) -> Tensor {
    let sizes: Vec<f32> = (0..EXAMPLES).map(|index| 0.2 + index as f32 / 6.0).collect();
    let sizes = Tensor::from_vec(sizes, EXAMPLES, &Device::Cpu).expect("sizes agree");
    let mut column = vec![1; shape.len()];
    column[0] = EXAMPLES;
    let sizes = sizes.reshape(column).expect("sizes agree");
    uniform(source, shape, 1.0).broadcast_mul(&sizes).expect("sizes agree")
}

/// A loss that is a sum over examples and curved in every output.
fn loss(outputs: &Tensor) -> Result<Tensor> {
    let width = outputs.elem_count() / outputs.dim(0)?;
    let probe: Vec<f32> = (0..width).map(|index| (index as f32 * 1.7).sin()).collect();
    let flat = outputs.flatten_from(1)?;
    let probe = Tensor::from_vec(probe, (1, width), outputs.device())?;
    (flat.broadcast_mul(&probe)? + (flat.sqr()? * 0.3)?)?.sum_all()
}

impl<Ours, Stock> Case<'_, Ours, Stock>
where
    Ours: Fn(&[Tensor], &Tensor, &Use) -> Result<Tensor>,
    Stock: Fn(&[Tensor], &Tensor) -> Result<Tensor>,
{
    fn check(&self) {
        self.run().expect("the network runs");
    }

    fn run(&self) -> Result<()> {
        let mut source = Xoshiro256PlusPlus::seed_from_u64(11);
        let (mut variables, mut spans, mut end) = (Vec::new(), Vec::new(), 0);
        for shape in self.shapes {
            variables.push(Var::from_tensor(&uniform(&mut source, shape, 0.7))?);
            let start = end;
            end += shape.iter().product::<usize>();
            spans.push(start..end);
        }
        let parameters: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let gradient = |inputs: &Tensor| -> Result<Vec<f32>> {
            let gradients = loss(&(self.stock)(&parameters, inputs)?)?.backward()?;
            let mut flat = Vec::new();
            for variable in &variables {
                let gradient = gradients.get(variable).expect("every parameter is used");
                flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok(flat)
        };
        let each: Vec<Vec<f32>> = (0..EXAMPLES)
            .map(|example| gradient(&self.inputs.narrow(0, example, 1)?.contiguous()?))
            .collect::<Result<_>>()?;
        let norm = |v: &Vec<f32>| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = each.iter().map(norm).collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);

        let record = || -> Result<Tape> {
            let uses = Use { tape: Tape::default(), spans: spans.clone() };
            loss(&(self.ours)(&parameters, &self.inputs, &uses)?)?.backward()?;
            Ok(uses.tape)
        };
        // Per-example gradients with a time axis kept for the sum, or formed twice.
        for (norm_max, kept) in [(sorted[EXAMPLES / 2], 1 << 20), (sorted[0] / 2.0, 0)] {
            let mut expected = vec![0.0_f32; end];
            for (gradient, norm) in each.iter().zip(&norms) {
                let factor = (norm_max / norm).min(1.0) as f32;
                expected.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += factor * value);
            }
            let mut sum = vec![0.0; end];
            let found = record()?.add_clipped_sum_keeping(kept, EXAMPLES, norm_max, &mut sum);
            for (found, expected) in found.expect("finite").iter().zip(&norms) {
                assert!((found / expected - 1.0).abs() < 1e-4, "norm {found} is not {expected}");
            }
            assert_close(&sum, &expected);
        }
        let mut sum = vec![0.0; end];
        record()?.add_sum(&mut sum)?;
        assert_close(&sum, &gradient(&self.inputs)?);
        Ok(())
    }
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(0.0_f32, |scale, value| scale.max(value.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let distance = (found - expected).abs();
        assert!(distance <= TOLERANCE * scale, "{index}: {found} is not {expected} (of {scale})");
    }
}

/// The library's linear layer on inputs with any number of dimensions.
fn stock_linear(inputs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let product = inputs.broadcast_matmul(&weight.t()?)?;
    bias.map_or(Ok(product.clone()), |bias| product.broadcast_add(bias))
}

#[test]
fn linear_layers_with_a_time_axis() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(1);
    Case {
        shapes: &[&[6, 5], &[6], &[4, 6], &[3, 4], &[3]],
        inputs: growing(&mut source, &[EXAMPLES, 7, 5]),
        ours: |p: &[Tensor], x: &Tensor, uses: &Use| {
            let hidden = linear(x, &p[0], Some(&p[1]), true, uses.of(0, Some(1)))?;
            let hidden = linear(&hidden, &p[2], None, true, uses.of(2, None))?;
            linear(&hidden.mean(1)?, &p[3], Some(&p[4]), false, uses.of(3, Some(4)))
        },
        stock: |p: &[Tensor], x: &Tensor| {
            let hidden = stock_linear(x, &p[0], Some(&p[1]))?.relu()?;
            let hidden = stock_linear(&hidden, &p[2], None)?.relu()?;
            stock_linear(&hidden.mean(1)?, &p[3], Some(&p[4]))
        },
    }
    .check();
}

#[test]
fn convolutions_and_pooling() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(2);
    let same = ConvGeometry { kernel: 3, stride: 1, padding: 1 };
    let strided = ConvGeometry { kernel: 3, stride: 2, padding: 0 };
    // Channels last to channels first and back, for images and for kernels.
    let first = |x: &Tensor| x.permute((0, 3, 1, 2))?.contiguous();
    let kernels = |w: &Tensor, channels: usize| first(&w.reshape(((), 3, 3, channels))?);
    let add = |x: Tensor, bias: &Tensor| x.broadcast_add(&bias.reshape((1, (), 1, 1))?);
    Case {
        shapes: &[&[4, 18], &[4], &[3, 36], &[3]],
        inputs: growing(&mut source, &[EXAMPLES, 11, 10, 2]),
        ours: |p: &[Tensor], x: &Tensor, uses: &Use| {
            let hidden = conv2d(x, &p[0], Some(&p[1]), same, true, uses.of(0, Some(1)))?;
            let hidden = max_pool2d(&hidden, 2)?;
            conv2d(&hidden, &p[2], Some(&p[3]), strided, false, uses.of(2, Some(3)))
        },
        stock: |p: &[Tensor], x: &Tensor| {
            let hidden = first(x)?.conv2d(&kernels(&p[0], 2)?, 1, 1, 1, 1)?;
            let hidden = add(hidden, &p[1])?.relu()?;
            // The eleventh row has no partner and is dropped.
            let squares = [hidden.dim(0)?, 4, 5, 2, 5, 2];
            let hidden = hidden.narrow(2, 0, 10)?.contiguous()?.reshape(&squares[..])?;
            let hidden = hidden.max(5)?.max(3)?.contiguous()?;
            let outputs = add(hidden.conv2d(&kernels(&p[2], 4)?, 0, 2, 1, 1)?, &p[3])?;
            outputs.permute((0, 2, 3, 1))?.contiguous()
        },
    }
    .check();
}

#[test]
fn embeddings_with_repeated_ids() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(3);
    let ids: Vec<u32> = (0..EXAMPLES * 6).map(|_| source.random_range(0..4)).collect();
    Case {
        shapes: &[&[9, 5], &[3, 5], &[3]],
        inputs: Tensor::from_vec(ids, (EXAMPLES, 6), &Device::Cpu).expect("sizes agree"),
        ours: |p: &[Tensor], ids: &Tensor, uses: &Use| {
            let hidden = embedding(ids, &p[0], uses.of(0, None))?;
            linear(&hidden, &p[1], Some(&p[2]), true, uses.of(1, Some(2)))
        },
        stock: |p: &[Tensor], ids: &Tensor| {
            let hidden = p[0].index_select(&ids.flatten_all()?, 0)?;
            let hidden = hidden.reshape((ids.dim(0)?, 6, 5))?;
            stock_linear(&hidden, &p[1], Some(&p[2]))?.relu()
        },
    }
    .check();
}

#[test]
fn scales_of_layer_and_rms_norms() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(4);
    let normal = |x: &Tensor| -> Result<Tensor> {
        let square = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-3)?;
        x.broadcast_div(&square.sqrt()?)
    };
    Case {
        shapes: &[&[8, 5], &[8], &[8], &[8], &[4, 8], &[4]],
        inputs: growing(&mut source, &[EXAMPLES, 3, 5]),
        ours: |p: &[Tensor], x: &Tensor, uses: &Use| {
            let hidden = linear(x, &p[0], Some(&p[1]), false, uses.of(0, Some(1)))?;
            let hidden = layer_norm(&hidden, &p[2], &p[3], 1e-3, uses.of(2, Some(3)))?;
            let hidden = linear(&hidden, &p[4], None, false, uses.of(4, None))?;
            rms_norm(&hidden, &p[5], 1e-3, uses.of(5, None))
        },
        stock: |p: &[Tensor], x: &Tensor| {
            let hidden = stock_linear(x, &p[0], Some(&p[1]))?;
            let centred = hidden.broadcast_sub(&hidden.mean_keepdim(D::Minus1)?)?;
            let hidden = normal(&centred)?.broadcast_mul(&p[2])?.broadcast_add(&p[3])?;
            normal(&stock_linear(&hidden, &p[4], None)?)?.broadcast_mul(&p[5])
        },
    }
    .check();
}

#[test]
fn low_rank_adapters_over_frozen_layers() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(5);
    let frozen = uniform(&mut source, &[6, 5], 0.7);
    Case {
        shapes: &[&[2, 5], &[6, 2], &[2, 6], &[3, 2]],
        inputs: growing(&mut source, &[EXAMPLES, 4, 5]),
        ours: |p: &[Tensor], x: &Tensor, uses: &Use| {
            let low = linear(x, &p[0], None, false, uses.of(0, None))?;
            let change = (linear(&low, &p[1], None, false, uses.of(1, None))? * 2.0)?;
            let hidden = (linear(x, &frozen, None, false, None)? + change)?.relu()?;
            let low = linear(&hidden, &p[2], None, false, uses.of(2, None))?;
            linear(&low, &p[3], None, false, uses.of(3, None))
        },
        stock: |p: &[Tensor], x: &Tensor| {
            let change = (stock_linear(&stock_linear(x, &p[0], None)?, &p[1], None)? * 2.0)?;
            let hidden = (stock_linear(x, &frozen, None)? + change)?.relu()?;
            stock_linear(&stock_linear(&hidden, &p[2], None)?, &p[3], None)
        },
    }
    .check();
}

#[test]
fn a_frozen_pass_gives_the_same_outputs() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(6);
    let inputs = growing(&mut source, &[EXAMPLES, 3, 5]);
    let (scale, bias) = (uniform(&mut source, &[5], 1.0), uniform(&mut source, &[5], 1.0));
    let flat = |tensor: Result<Tensor>| {
        with_elements(&tensor.expect("runs"), <[f32]>::to_vec).expect("f32")
    };
    let tape = Tape::default();
    let recording = |weight: Range<usize>, bias| {
        Some(Recording { tape: tape.clone(), spans: Spans { weight, bias } })
    };
    assert_eq!(
        flat(layer_norm(&inputs, &scale, &bias, 1e-5, None)),
        flat(layer_norm(&inputs, &scale, &bias, 1e-5, recording(0..5, Some(5..10)))),
    );
    assert_eq!(
        flat(rms_norm(&inputs, &scale, 1e-5, None)),
        flat(rms_norm(&inputs, &scale, 1e-5, recording(0..5, None))),
    );
}

#[test]
fn shared_parameters_are_refused() {
    let mut source = Xoshiro256PlusPlus::seed_from_u64(7);
    let weight = Var::from_tensor(&uniform(&mut source, &[5, 5], 1.0)).expect("copies");
    let inputs = growing(&mut source, &[EXAMPLES, 5]);
    let tape = Tape::default();
    let recording = || {
        let spans = Spans { weight: 0..25, bias: None };
        Some(Recording { tape: tape.clone(), spans })
    };
    let hidden = linear(&inputs, &weight, None, true, recording()).expect("runs");
    let outputs = linear(&hidden, &weight, None, false, recording()).expect("runs");
    loss(&outputs).expect("runs").backward().expect("runs");
    let error = tape.add_clipped_sum(EXAMPLES, 1.0, &mut [0.0; 25]).map(|_| ());
    assert!(matches!(error, Err(ClippingError::Shared { parameter: 0 })), "{error:?}");
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let device = &Device::Cpu;
    let zeros =
        |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, device).expect("allocates");
    let ids = Tensor::from_vec(vec![0_u32, 9], (1, 2), device).expect("sizes agree");
    let large = ConvGeometry { kernel: 5, stride: 1, padding: 0 };
    let still = ConvGeometry { kernel: 1, stride: 0, padding: 0 };
    let images = zeros(&[1, 3, 3, 1]);
    assert!(linear(&zeros(&[2, 3]), &zeros(&[4, 5]), None, false, None).is_err());
    assert!(embedding(&ids, &zeros(&[9, 2]), None).is_err());
    assert!(conv2d(&images, &zeros(&[1, 25]), None, large, false, None).is_err());
    assert!(conv2d(&images, &zeros(&[1, 1]), None, still, false, None).is_err());
    assert!(max_pool2d(&images, 4).is_err());
    assert!(max_pool2d(&images, 0).is_err());
    assert!(rms_norm(&zeros(&[2, 3]), &zeros(&[4]), 1e-5, None).is_err());
}
