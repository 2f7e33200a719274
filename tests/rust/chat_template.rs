//! Chat templates against transformers' results (`tests/golden/make_tokenizer.py`).

use candlewick::tokenizer::{ChatOptions, RenderedChat, Tokenizer, TokenizerConfig};
use serde_json::{Value, json};

use crate::tokenizer::{golden, ids, json as read_json, list, load, text};

/// The keyword arguments that a case gives to transformers.
fn options(conversation: &Value) -> ChatOptions {
    let mut variables = conversation.as_object().unwrap().clone();
    let mut take = |key: &str| variables.shift_remove(key);
    take("name");
    take("messages");
    let flag = |value: Option<Value>| value.is_some_and(|value| value == Value::Bool(true));
    ChatOptions {
        add_generation_prompt: flag(take("add_generation_prompt")),
        continue_final_message: flag(take("continue_final_message")),
        tools: take("tools"),
        template: None,
        variables,
    }
}

fn template(name: &str) -> String {
    std::fs::read_to_string(golden(&format!("chat/{name}.jinja"))).unwrap()
}

#[test]
fn renders_chats_as_transformers() {
    let tokenizer = load("byte_level");
    let conversations = read_json("chat/conversations.json");
    let (mut rendered, mut refused) = (0, 0);
    for case in read_json("chat/rendered.json").as_array().unwrap() {
        let conversation = conversations
            .as_array()
            .unwrap()
            .iter()
            .find(|conversation| conversation["name"] == case["conversation"])
            .unwrap();
        let mut options = options(conversation);
        options.template = Some(template(text(case, "template")));
        options.variables.insert("bos_token".into(), "<s>".into());
        options.variables.insert("eos_token".into(), "<|im_end|>".into());
        let result = tokenizer.apply_chat_template(&conversation["messages"], &options);
        let name = format!("{} with {}", case["template"], case["conversation"]);
        match (&result, case["text"].as_str()) {
            (Ok(text), Some(expected)) => {
                assert_eq!(text, expected, "{name}");
                rendered += 1;
            }
            (Err(error), None) => {
                assert!(matches!(error, candlewick::Error::InvalidArgument { .. }), "{name}: {error}");
                refused += 1;
            }
            other => panic!("{name}: {other:?}, transformers: {case}"),
        }
    }
    assert!(rendered > 60 && refused > 5, "{rendered} rendered, {refused} refused");
}

#[test]
fn renders_expressions_as_transformers() {
    let tokenizer = load("byte_level");
    let expressions = read_json("expressions.json");
    let messages = json!([{"role": "user", "content": ""}]);
    let mut wrong = Vec::new();
    for case in list(&expressions, "cases") {
        let options = ChatOptions {
            template: Some(text(case, "template").to_string()),
            variables: expressions["variables"].as_object().unwrap().clone(),
            ..ChatOptions::default()
        };
        let got = tokenizer.apply_chat_template(&messages, &options);
        if got.as_ref().ok().map(String::as_str) != case["text"].as_str() {
            wrong.push(format!("{}\n   got {got:?}\n  want {:?}", case["template"], case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn marks_assistant_turns_as_transformers() {
    let tokenizer = load("byte_level");
    let conversations = read_json("chat/conversations.json");
    let masks = read_json("chat/masks.json");
    let mut spoken = 0;
    for case in masks.as_array().unwrap() {
        let name = text(case, "conversation");
        let conversation =
            conversations.as_array().unwrap().iter().find(|c| c["name"] == case["conversation"]).unwrap();
        let find = |template_name: &str| {
            let options = ChatOptions { template: Some(template(template_name)), ..ChatOptions::default() };
            tokenizer.assistant_spans(&conversation["messages"], &options).unwrap()
        };
        let chat = find("marked_chatml");
        let masked = tokenizer.encode_masked(&chat.text, &chat.assistant).unwrap();
        let mask: Vec<u32> = masked.mask.iter().map(|&inside| u32::from(inside)).collect();
        assert_eq!(masked.ids, ids(&case["ids"]), "{name}");
        assert_eq!(mask, ids(&case["mask"]), "{name}");
        spoken += chat.assistant.len();
        // The same template without marks says the same by comparison of prefixes.
        assert_eq!(find("plain_chatml"), chat, "{name}");
    }
    assert!(spoken > 5, "{spoken}");
}

fn conversation(name: &str) -> Value {
    let conversations = read_json("chat/conversations.json");
    let found = conversations.as_array().unwrap().iter().find(|conversation| conversation["name"] == name);
    found.unwrap().clone()
}

/// What the assistant says, as the spans cut it out.
fn spoken(template_name: &str, conversation_name: &str) -> Vec<String> {
    let conversation = conversation(conversation_name);
    let mut options = options(&conversation);
    options.template = Some(template(template_name));
    let chat = load("byte_level").assistant_spans(&conversation["messages"], &options).unwrap();
    let RenderedChat { text, assistant } = chat;
    assistant.iter().map(|range| text[range.clone()].to_string()).collect()
}

#[test]
fn finds_turns_that_change_when_others_follow() {
    let call = |arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let weather = call(r#"{"city": "Zürich", "days": 3, "scale": 0.5}"#);
    // Earlier reasoning is dropped, and the last turn has it in any case.
    assert_eq!(
        spoken("thinking_chatml", "thinking"),
        ["2<|im_end|>", "<think>\nTwice that.\n</think>\n\n4<|im_end|>"]
    );
    assert_eq!(
        spoken("thinking_chatml", "tool_calls"),
        [format!("{weather}<|im_end|>"), "18 degrees.<|im_end|>".to_string()]
    );
    assert_eq!(
        spoken("tools_chatml", "tool_calls"),
        [format!("{weather}<|im_end|>"), "18 degrees.<|im_end|>".to_string()]
    );
    assert_eq!(spoken("header_date", "turns"), ["A model.<|eot|>", "I'm \"fine\" 🎉<|eot|>"]);
    // The system message moves to the last question, so no beginning of the chat is rendered alike.
    assert_eq!(spoken("alternating", "turns"), ["A model.<|im_end|>", "I'm \"fine\" 🎉<|im_end|>"]);
    assert_eq!(
        spoken("alternating", "tool_calls"),
        [
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 3, \
             \"scale\": 0.5}, \"id\": \"abc123DEF\"}]<|im_end|>",
            "18 degrees.<|im_end|>"
        ]
    );
    assert_eq!(spoken("plain_chatml", "assistant_first"), ["Welcome.<|im_end|>"]);
    assert_eq!(spoken("plain_chatml", "one"), [""; 0]);
}

#[test]
fn turns_that_are_not_shown_are_refused() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for hidden in [
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}:{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
    ] {
        let options = ChatOptions { template: Some(hidden.into()), ..ChatOptions::default() };
        let error = load("byte_level").assistant_spans(&messages, &options).unwrap_err();
        assert!(error.to_string().contains("assistant turn 1"), "{error}");
    }
    let options = ChatOptions { continue_final_message: true, ..ChatOptions::default() };
    assert!(load("byte_level").assistant_spans(&messages, &options).is_err());
}

#[test]
fn marks_survive_hostile_text() {
    let messages = json!([{"role": "user", "content": "\u{F8FF}0\u{F8FF}"}, {"role": "assistant", "content": "\u{F8FF}1\u{F8FF}"}]);
    for name in ["marked_chatml", "plain_chatml"] {
        let options = ChatOptions { template: Some(template(name)), ..ChatOptions::default() };
        let chat = load("byte_level").assistant_spans(&messages, &options).unwrap();
        assert_eq!(chat.text, load("byte_level").apply_chat_template(&messages, &options).unwrap());
        assert_eq!(&chat.text[chat.assistant[0].clone()], "\u{F8FF}1\u{F8FF}<|im_end|>");
    }
}

/// A tokenizer with these templates, by name.
fn with_templates(templates: &[(&str, &str)]) -> Tokenizer {
    let chat_templates =
        templates.iter().map(|(name, source)| (name.to_string(), source.to_string())).collect();
    let config = TokenizerConfig { chat_templates, ..TokenizerConfig::default() };
    Tokenizer::from_parts(load("byte_level").inner().clone(), config).unwrap()
}

#[test]
fn chooses_the_template_as_transformers() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let tokenizer = with_templates(&[("default", "d"), ("tool_use", "t"), ("rag", "r")]);
    let render = |tools: Option<Value>, template: Option<&str>| {
        let template = template.map(str::to_string);
        tokenizer
            .apply_chat_template(&messages, &ChatOptions { tools, template, ..ChatOptions::default() })
            .unwrap()
    };
    assert_eq!(render(None, None), "d");
    assert_eq!(render(Some(json!([])), None), "t");
    assert_eq!(render(Some(json!([])), Some("rag")), "r");
    assert_eq!(render(None, Some("{{ messages[0].content }}")), "x");

    let error =
        |tokenizer: Tokenizer| tokenizer.apply_chat_template(&messages, &ChatOptions::default()).unwrap_err();
    let none = error(with_templates(&[]));
    assert!(
        matches!(none, candlewick::Error::InvalidConfig { .. })
            && none.to_string().contains("no chat template")
    );
    assert!(error(with_templates(&[("rag", "r")])).to_string().contains("choose one of rag"));
    assert!(error(with_templates(&[("default", "{% if %}")])).to_string().contains("line 1"));
}

#[test]
fn wrong_arguments_are_refused() {
    let tokenizer = with_templates(&[("default", "{{ messages|length }}")]);
    let fine = json!([{"role": "user", "content": "x"}]);
    let refused = |messages: &Value, options: &ChatOptions, name: &str| {
        let error = tokenizer.apply_chat_template(messages, options).unwrap_err();
        let is_named = matches!(&error, candlewick::Error::InvalidArgument { name: got, .. } if got == name);
        assert!(is_named, "{error}");
    };
    let plain = ChatOptions::default();
    refused(&json!([]), &plain, "messages");
    refused(&json!("hi"), &plain, "messages");
    refused(&json!(["hi"]), &plain, "messages[0]");
    refused(&fine, &ChatOptions { tools: Some(json!({})), ..plain.clone() }, "tools");
    let variables = json!({"messages": 1}).as_object().unwrap().clone();
    refused(&fine, &ChatOptions { variables, ..plain.clone() }, "variables");
    let open = ChatOptions { continue_final_message: true, ..plain.clone() };
    refused(&fine, &ChatOptions { add_generation_prompt: true, ..open.clone() }, "continue_final_message");
    refused(&fine, &open, "continue_final_message");
    refused(&json!([{"role": "user"}]), &open, "messages");
}

#[test]
fn turns_end_at_whole_tokens() {
    // A template that ends a finished chat with a token of its own, and opens a reasoning in its prompt.
    let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
                  {% if add_generation_prompt %}<|assistant|><think>{% else %}<|endoftext|>{% endif %}";
    let config = TokenizerConfig {
        extra_special_tokens: ["<|end|>", "<|user|>", "<|assistant|>", "<think>", "<answer>"]
            .map(str::to_string)
            .into(),
        named_tokens: [("eos_token".to_string(), "<|endoftext|>".to_string())].into(),
        chat_templates: [("default".to_string(), source.to_string())].into(),
        ..TokenizerConfig::default()
    };
    let tokenizer = Tokenizer::from_parts(load("byte_level").inner().clone(), config).unwrap();
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages =
        json!([turn("user", "a"), turn("assistant", "<answer>b"), turn("user", "c"), turn("assistant", "d")]);
    let chat = tokenizer.assistant_spans(&messages, &ChatOptions::default()).unwrap();
    let spoken: Vec<&str> = chat.assistant.iter().map(|range| &chat.text[range.clone()]).collect();
    assert_eq!(spoken, ["<answer>b<|end|>", "d<|end|><|endoftext|>"]);
}
