//! Well-known forms of conversations, for models that come without a template.

/// A form of conversations by name.
#[derive(Clone, Copy, Debug)]
pub struct KnownTemplate {
    /// Its name.
    pub name: &'static str,
    /// The template.
    pub source: &'static str,
    /// Texts that end a reply where the vocabulary has no such tokens.
    pub stops: &'static [&'static str],
}

/// All of them.
pub const KNOWN_TEMPLATES: &[KnownTemplate] = &[
    KnownTemplate {
        name: "chatml",
        source: "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant\n{{ '' }}{% endif %}",
        stops: &["<|im_end|>", "<|im_start|>"],
    },
    KnownTemplate {
        name: "llama2",
        source: "{% set ns = namespace(system='') %}{% for m in messages %}\
                 {% if m.role == 'system' %}{% set ns.system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}\
                 {% elif m.role == 'user' %}{{ bos_token }}[INST] {{ ns.system }}{{ m.content.strip() }} [/INST]\
                 {% set ns.system = '' %}\
                 {% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}",
        stops: &["[INST]"],
    },
    KnownTemplate {
        name: "llama3",
        source: "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n\
                 {{ m.content.strip() }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{{ '' }}{% endif %}",
        stops: &["<|eot_id|>", "<|start_header_id|>"],
    },
    KnownTemplate {
        name: "mistral",
        source: "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}\
                 {% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}\
                 {% elif m.role == 'user' %}[INST] {{ ns.system }}{{ m.content }} [/INST]{% set ns.system = '' %}\
                 {% else %} {{ m.content.strip() }}{{ eos_token }}{% endif %}{% endfor %}",
        stops: &["[INST]"],
    },
    KnownTemplate {
        name: "gemma",
        source: "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}\
                 {% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}\
                 {% else %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n\
                 {{ ns.system }}{{ m.content.strip() }}<end_of_turn>\n{% set ns.system = '' %}{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}<start_of_turn>model\n{{ '' }}{% endif %}",
        stops: &["<end_of_turn>", "<start_of_turn>"],
    },
    KnownTemplate {
        name: "phi3",
        source: "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>\n{{ '' }}{% endif %}",
        stops: &["<|end|>", "<|user|>"],
    },
    KnownTemplate {
        name: "zephyr",
        source: "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>\n{{ '' }}{% endif %}",
        stops: &["<|user|>"],
    },
    KnownTemplate {
        name: "vicuna",
        source: "{{ bos_token }}{% for m in messages %}\
                 {% if m.role == 'system' %}{{ m.content }}\n\n\
                 {% elif m.role == 'user' %}USER: {{ m.content }}\n\
                 {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}ASSISTANT:{% endif %}",
        stops: &["USER:"],
    },
    KnownTemplate {
        name: "alpaca",
        source: "{% for m in messages %}\
                 {% if m.role == 'system' %}{{ m.content }}\n\n\
                 {% elif m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n\
                 {% else %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}### Response:\n{{ '' }}{% endif %}",
        stops: &["### Instruction:"],
    },
    KnownTemplate {
        name: "plain",
        source: "{% for m in messages %}\
                 {% if m.role == 'system' %}{{ m.content }}\n\n\
                 {% elif m.role == 'user' %}User: {{ m.content }}\n\
                 {% else %}Assistant: {{ m.content.strip() }}\n{% endif %}{% endfor %}\
                 {% if add_generation_prompt %}Assistant:{% endif %}",
        stops: &["\nUser:"],
    },
];
