//! Types as their source defines them: fields, documentation, and what serde makes of both.

use std::collections::BTreeMap;

use anyhow::Context;
use syn::{
    Attribute, Expr, ExprLit, Fields, File, GenericArgument, Ident, ImplItem, Item, Lit, LitStr,
    Meta, PathArguments, Stmt, Token, Type, punctuated::Punctuated,
};

use crate::shell::root;

/// A default that only the program knows: its documentation must say it (`Default 10.`).
pub(super) const COMPUTED: &str = "computed";

/// Everything that some source files define.
#[derive(Default)]
pub(super) struct Source {
    structs: BTreeMap<String, Struct>,
    enums: BTreeMap<String, Enum>,
    /// By type and field, and by the name of a function: what it begins with.
    defaults: BTreeMap<(String, String), String>,
    /// Types that are written as another.
    written_as: BTreeMap<String, String>,
}

/// A table of a file.
#[derive(Clone)]
pub(super) struct Struct {
    /// Whether every field may be left out.
    has_default: bool,
    pub(super) fields: Vec<Field>,
}

/// A key.
#[derive(Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) shape: Shape,
    default: Option<Option<String>>,
}

/// A choice.
pub(super) struct Enum {
    pub(super) variants: Vec<Variant>,
}

/// One of them.
pub(super) struct Variant {
    pub(super) name: String,
    /// The name of the table that it holds, or its own keys.
    pub(super) held: Held,
}

/// What a choice holds.
pub(super) enum Held {
    Nothing,
    Table(String),
    Keys(Struct),
}

/// The form of a value.
#[derive(Clone)]
pub(super) enum Shape {
    Named(String),
    Optional(Box<Self>),
    List(Box<Self>),
    /// A table with names that whoever writes the file chooses.
    ByName(Box<Self>),
}

/// The attributes of serde that change how something is written.
#[derive(Default)]
struct Serde {
    default: Option<Option<String>>,
    rename_all: Option<String>,
    rename: Option<String>,
    try_from: Option<String>,
}

impl Source {
    /// Reads the files, named from the workspace's root.
    pub(super) fn read(paths: &[&str]) -> anyhow::Result<Self> {
        let mut source = Self::default();
        for path in paths {
            let text = std::fs::read_to_string(root().join(path));
            let text = text.with_context(|| format!("cannot read {path}"))?;
            let file: File =
                syn::parse_str(&text).with_context(|| format!("cannot parse {path}"))?;
            for item in file.items {
                source.take(item)?;
            }
        }
        Ok(source)
    }

    /// The type whose form another is written in.
    pub(super) fn written_as(&self, name: &str) -> Option<&str> {
        self.written_as.get(name).map(String::as_str)
    }

    pub(super) fn table(&self, name: &str) -> Option<&Struct> {
        self.structs.get(name)
    }

    pub(super) fn choice(&self, name: &str) -> Option<&Enum> {
        self.enums.get(name)
    }

    /// What a key is if it is left out; `None` if it must not be.
    ///
    /// - `table`: the name of the type
    pub(super) fn default_of(&self, table: &str, of: &Struct, field: &Field) -> Option<String> {
        if let Some((_, said)) = field.text.rsplit_once("Default ")
            && let Some(said) = said.strip_suffix('.')
        {
            let whole = said.strip_prefix('`').and_then(|said| said.strip_suffix('`'));
            return Some(whole.filter(|said| !said.contains('`')).unwrap_or(said).to_owned());
        }
        let key = |name: &str| (table.to_owned(), name.to_owned());
        let found = match &field.default {
            Some(Some(function)) => {
                let found = self.defaults.get(&(String::new(), function.clone())).cloned();
                found.or_else(|| Some(COMPUTED.to_owned()))
            }
            _ => self.defaults.get(&key(&field.name)).cloned(),
        };
        let may_miss = field.default.is_some() || of.has_default;
        match &field.shape {
            _ if found.is_some() => {
                found.filter(|said| said != "None").or_else(|| Some("none".into()))
            }
            Shape::Optional(_) => Some("none".to_owned()),
            Shape::List(_) | Shape::ByName(_) if may_miss => Some("empty".to_owned()),
            Shape::Named(name) if may_miss => Some(self.default_of_type(name)),
            _ => None,
        }
    }

    fn default_of_type(&self, name: &str) -> String {
        let found = self.defaults.get(&(name.to_owned(), String::new()));
        match (found, name) {
            (Some(variant), _) => variant.clone(),
            (None, "bool") => "false".to_owned(),
            (None, "String") => "empty".to_owned(),
            (None, _) if self.structs.contains_key(name) => "the defaults below".to_owned(),
            (None, _) => "0".to_owned(),
        }
    }

    fn take(&mut self, item: Item) -> anyhow::Result<()> {
        match item {
            Item::Struct(item) => {
                let serde = serde(&item.attrs)?;
                let fields = fields(&item.fields, serde.rename_all.as_deref())?;
                let table = Struct { has_default: serde.default.is_some(), fields };
                self.structs.insert(item.ident.to_string(), table);
            }
            Item::Enum(item) => {
                let outer = serde(&item.attrs)?;
                if let Some(other) = outer.try_from {
                    self.written_as.insert(item.ident.to_string(), other);
                    return Ok(());
                }
                let mut variants = Vec::new();
                for variant in &item.variants {
                    let own = serde(&variant.attrs)?;
                    let name = own.rename.unwrap_or_else(|| {
                        renamed(&variant.ident.to_string(), outer.rename_all.as_deref())
                    });
                    if variant.attrs.iter().any(|attribute| attribute.path().is_ident("default")) {
                        let key = (item.ident.to_string(), String::new());
                        self.defaults.insert(key, format!("\"{name}\""));
                    }
                    let held = match &variant.fields {
                        Fields::Unit => Held::Nothing,
                        Fields::Unnamed(held) => match shape(&held.unnamed[0].ty) {
                            Shape::Named(name) => Held::Table(name),
                            _ => Held::Nothing,
                        },
                        named @ Fields::Named(_) => {
                            Held::Keys(Struct { has_default: false, fields: fields(named, None)? })
                        }
                    };
                    variants.push(Variant { name, held });
                }
                self.enums.insert(item.ident.to_string(), Enum { variants });
            }
            Item::Fn(item) => {
                let value = match &item.block.stmts[..] {
                    [Stmt::Expr(value, None)] => shown(value),
                    [Stmt::Macro(value)] => listed(&value.mac),
                    _ => None,
                };
                if let Some(value) = value {
                    self.defaults.insert((String::new(), item.sig.ident.to_string()), value);
                }
            }
            Item::Impl(item) => {
                let of = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
                if of.is_some_and(|segment| segment.ident == "Default")
                    && let Shape::Named(name) = shape(&item.self_ty)
                {
                    self.take_default(&name, &item.items);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The values of a type's `default()`.
    fn take_default(&mut self, name: &str, items: &[ImplItem]) {
        for item in items {
            let ImplItem::Fn(function) = item else { continue };
            let Some(Stmt::Expr(Expr::Struct(value), None)) = function.block.stmts.last() else {
                continue;
            };
            for field in &value.fields {
                if let syn::Member::Named(key) = &field.member
                    && !is_type_default(&field.expr)
                {
                    let value = shown(&field.expr).unwrap_or_else(|| COMPUTED.to_owned());
                    self.defaults.insert((name.to_owned(), key.to_string()), value);
                }
            }
        }
    }
}

fn fields(fields: &Fields, rename_all: Option<&str>) -> anyhow::Result<Vec<Field>> {
    let mut known = Vec::new();
    for field in fields {
        let Some(ident) = &field.ident else { continue };
        let serde = serde(&field.attrs)?;
        let name = serde.rename.unwrap_or_else(|| renamed(&ident.to_string(), rename_all));
        let (text, shape) = (documentation(&field.attrs), shape(&field.ty));
        known.push(Field { name, text, shape, default: serde.default });
    }
    Ok(known)
}

fn serde(attributes: &[Attribute]) -> anyhow::Result<Serde> {
    let mut found = Serde::default();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
        attribute.parse_nested_meta(|meta| {
            let value = if meta.input.peek(Token![=]) {
                Some(meta.value()?.parse::<LitStr>()?.value())
            } else {
                None
            };
            match meta.path.get_ident().map(Ident::to_string).as_deref() {
                Some("default") => found.default = Some(value),
                Some("rename_all") => found.rename_all = value,
                Some("rename") => found.rename = value,
                Some("try_from") => found.try_from = value,
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(found)
}

/// The text of the comments, in one line.
fn documentation(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value().trim().to_owned()),
            _ => None,
        },
        _ => None,
    };
    attributes.iter().filter_map(line).collect::<Vec<_>>().join(" ")
}

fn shape(from: &Type) -> Shape {
    let Type::Path(path) = from else { return Shape::Named("?".to_owned()) };
    let Some(last) = path.path.segments.last() else { return Shape::Named("?".to_owned()) };
    let mut held: Vec<Shape> = match &last.arguments {
        PathArguments::AngleBracketed(arguments) => arguments
            .args
            .iter()
            .filter_map(|argument| match argument {
                GenericArgument::Type(of) => Some(shape(of)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    match (last.ident.to_string().as_str(), held.pop()) {
        ("Option", Some(of)) => Shape::Optional(Box::new(of)),
        ("Vec" | "BTreeSet", Some(of)) => Shape::List(Box::new(of)),
        ("BTreeMap", Some(of)) => Shape::ByName(Box::new(of)),
        ("Box", Some(of)) => of,
        (name, _) => Shape::Named(name.to_owned()),
    }
}

/// A value as a file has it; `None` if it is computed.
fn shown(value: &Expr) -> Option<String> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => match lit {
            Lit::Int(number) => Some(number.base10_digits().to_owned()),
            Lit::Float(number) => Some(number.to_string()),
            Lit::Bool(is) => Some(is.value.to_string()),
            Lit::Str(text) => Some(format!("\"{}\"", text.value())),
            _ => None,
        },
        // "text".to_owned()
        Expr::MethodCall(call) if call.args.is_empty() && call.method == "to_owned" => {
            shown(&call.receiver)
        }
        Expr::Path(path) => match path.path.segments.last()?.ident.to_string().as_str() {
            "None" => Some("None".to_owned()),
            name if path.path.segments.len() > 1 && name.starts_with(char::is_uppercase) => {
                (!name.chars().all(|char| char.is_uppercase() || char == '_'))
                    .then(|| format!("\"{}\"", renamed(name, Some("kebab-case"))))
            }
            _ => None,
        },
        Expr::Macro(list) => listed(&list.mac),
        _ => None,
    }
}

/// A list as a file has it: `vec![Trust::Local]`.
fn listed(list: &syn::Macro) -> Option<String> {
    let held = list.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated).ok()?;
    let held: Option<Vec<_>> = held.iter().map(shown).collect();
    list.path.is_ident("vec").then_some(format!("[{}]", held?.join(", ")))
}

/// Whether a value is the default of its type: `Kind::default()`.
fn is_type_default(value: &Expr) -> bool {
    let Expr::Call(call) = value else { return false };
    let Expr::Path(path) = &*call.func else { return false };
    call.args.is_empty() && path.path.segments.last().is_some_and(|last| last.ident == "default")
}

/// The name that serde gives an identifier.
fn renamed(name: &str, rule: Option<&str>) -> String {
    let separator = match rule {
        Some("kebab-case") => '-',
        Some("snake_case") => '_',
        _ => return name.to_owned(),
    };
    let mut renamed = String::new();
    for char in name.chars() {
        if char.is_uppercase() && !renamed.is_empty() {
            renamed.push(separator);
        }
        renamed.extend(char.to_lowercase());
    }
    renamed.replace('_', &separator.to_string())
}
