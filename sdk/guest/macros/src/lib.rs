//! The attributes `#[bus_guest::transform]` and `#[bus_guest::consumer]`. Use them through `bus_guest`.

use proc_macro::{TokenStream, TokenTree};

/// Makes a function of the form `fn(Record) -> Result<Option<Record>, Reject>` a component's transform.
#[proc_macro_attribute]
pub fn transform(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand("transform", "__transform", attribute, item)
}

/// Makes a function of the form `fn(Batch, &mut Context) -> Result<(), Error>` a component's consumer.
#[proc_macro_attribute]
pub fn consumer(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand("consumer", "__consumer", attribute, item)
}

/// The function as it stands, and behind it the macro that makes a component of it.
fn expand(attribute_name: &str, glue: &str, attribute: TokenStream, item: TokenStream) -> TokenStream {
    if !attribute.is_empty() {
        return error(&format!("#[bus_guest::{attribute_name}] takes no arguments"));
    }
    let Some(name) = function_name(&item) else {
        return error(&format!("#[bus_guest::{attribute_name}] stands on a function"));
    };
    let glue: TokenStream = match format!("::bus_guest::{glue}!({name});").parse() {
        Ok(glue) => glue,
        Err(_) => return error("the function's name is not one"),
    };
    item.into_iter().chain(glue).collect()
}

/// The word behind the first `fn` that is not inside brackets.
fn function_name(item: &TokenStream) -> Option<String> {
    let mut tokens = item.clone().into_iter();
    tokens.find(|token| matches!(token, TokenTree::Ident(word) if word.to_string() == "fn"))?;
    match tokens.next()? {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    }
}

fn error(message: &str) -> TokenStream {
    format!("::core::compile_error!({message:?});").parse().unwrap_or_default()
}
