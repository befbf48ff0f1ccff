use serde_json::{Map, json};

/// The `tokenizer.json` of which every byte is a token with the byte's number.
#[must_use]
pub fn bytes_tokenizer() -> String {
    // The format writes bytes as printable characters: most as themselves, the others from U+0100 on.
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut vocabulary = Map::new();
    let mut next = 0x100_u32;
    for byte in 0..=u8::MAX {
        let character = if printable(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).expect("the characters from U+0100 on are there")
        };
        vocabulary.insert(character.to_string(), byte.into());
    }
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": [],
        },
    })
    .to_string()
}
