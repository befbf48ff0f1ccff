//! Tables of keys as Markdown.

use std::collections::VecDeque;

use anyhow::Context;

use super::source::{Held, Shape, Source, Struct};

/// Describes a type's table and every table in it.
pub(super) fn tables(source: &Source, root: &str) -> anyhow::Result<String> {
    let start = source.table(root).with_context(|| format!("there is no type {root}"))?;
    let mut text = String::new();
    let mut ahead = VecDeque::from([(String::new(), root.to_owned(), start.clone())]);
    while let Some((path, name, table)) = ahead.pop_front() {
        let mut rows = String::new();
        for field in &table.fields {
            let parent = path.trim_matches(['[', ']']);
            let inside = if path.is_empty() {
                field.name.clone()
            } else {
                format!("{parent}.{}", field.name)
            };
            let (inner, inside, repeated) = unwrapped(&field.shape, inside);
            let held = tables_of(source, &inner, &inside);
            let is_table = !held.is_empty();
            let is_section = is_table && path.is_empty();
            for (at, mut held_name, held) in held {
                let at = if repeated { format!("[{at}]") } else { at };
                held_name = if held_name.is_empty() { inner.clone() } else { held_name };
                ahead.push_back((at, held_name, held));
            }
            // Tables of a file's top have sections of their own, and their keys speak for them.
            if is_section && source.choice(&inner).is_none() {
                continue;
            }
            let default = source.default_of(&name, &table, field);
            let default = default.map_or("required".to_owned(), |said| coded(&said));
            let (value, text) = (value(source, &field.shape), escaped(&field.text));
            rows += &format!("| `{}` | {value} | {default} | {text} |\n", field.name);
        }
        if rows.is_empty() {
            continue;
        }
        if !path.is_empty() {
            text += &format!("\n### `[{path}]`\n");
        }
        text += &format!("\n| key | value | default | meaning |\n|---|---|---|---|\n{rows}");
    }
    Ok(text)
}

/// What is in options, lists and tables by name; where it is in the file; whether it is repeated.
fn unwrapped(shape: &Shape, at: String) -> (String, String, bool) {
    match shape {
        Shape::Named(name) => (name.clone(), at, false),
        Shape::Optional(inner) => unwrapped(inner, at),
        Shape::List(inner) => {
            let (name, at, _) = unwrapped(inner, at);
            (name, at, true)
        }
        Shape::ByName(inner) => unwrapped(inner, format!("{at}.NAME")),
    }
}

/// The tables that a value of a type may be: where they are in the file, their type, their keys.
fn tables_of(source: &Source, name: &str, at: &str) -> Vec<(String, String, Struct)> {
    if let Some(table) = source.table(name) {
        return vec![(at.to_owned(), name.to_owned(), table.clone())];
    }
    let Some(choice) = source.choice(name) else { return Vec::new() };
    let held = choice.variants.iter().filter_map(|variant| {
        let at = format!("{at}.{}", variant.name);
        match &variant.held {
            Held::Nothing => None,
            Held::Table(name) => Some((at, name.clone(), source.table(name)?.clone())),
            Held::Keys(keys) => Some((at, String::new(), keys.clone())),
        }
    });
    held.collect()
}

/// What may stand there.
fn value(source: &Source, shape: &Shape) -> String {
    match shape {
        Shape::Optional(inner) => value(source, inner),
        Shape::List(inner) => format!("list: {}", value(source, inner)),
        Shape::ByName(inner) => format!("by name: {}", value(source, inner)),
        Shape::Named(name) => named(source, name),
    }
}

fn named(source: &Source, name: &str) -> String {
    if let Some(other) = source.written_as(name) {
        return named(source, other);
    }
    if let Some(choice) = source.choice(name) {
        let one = |variant: &super::source::Variant| match variant.held {
            Held::Nothing => format!("`\"{}\"`", variant.name),
            _ => format!("table `{}`", variant.name),
        };
        return choice.variants.iter().map(one).collect::<Vec<_>>().join(", ");
    }
    if source.table(name).is_some() {
        return "table".to_owned();
    }
    match name {
        "bool" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "whole number",
        "i32" | "i64" => "whole number, also negative",
        "NonZeroU32" => "whole number above 0",
        "f32" | "f64" => "number",
        "String" => "text",
        "PathBuf" => "path",
        "SocketAddr" => "address and port",
        "Digest" => "64 hexadecimal digits",
        "TenantId" | "Region" | "DatasetName" | "JobId" => "name",
        other => other,
    }
    .to_owned()
}

fn coded(said: &str) -> String {
    let is_value = said.starts_with(['"', '[']) || said.parse::<f64>().is_ok();
    let is_value = is_value || matches!(said, "true" | "false");
    if is_value { format!("`{said}`") } else { escaped(said) }
}

/// Text for a cell: without links to code, which lead nowhere here.
fn escaped(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}
