//! Chat formats of models that have them in their own Python code and not in a file: the template, written in Jinja, and the
//! tokens that this code ends an answer at.

/// A chat format.
#[derive(Clone, Copy)]
pub(super) struct Format {
    pub template: &'static str,
    /// Beside the end tokens that the configuration names.
    pub ends: &'static [&'static str],
}

/// `build_prompt` of ChatGLM 2: numbered rounds in plain text. The special tokens are those before every text.
pub(super) const CHATGLM2: Format = Format { template: CHATGLM2_TEMPLATE, ends: &[] };

const CHATGLM2_TEMPLATE: &str = "[gMASK]sop\
{%- set ns = namespace(round=0) -%}\
{%- for message in messages -%}\
{%- if message.role == 'user' -%}\
{%- set ns.round = ns.round + 1 -%}\
{{- '[Round ' ~ ns.round ~ ']\n\n问：' ~ message.content ~ '\n\n答：' -}}\
{%- elif message.role == 'assistant' -%}\
{{- message.content ~ '\n\n' -}}\
{%- else -%}\
{{- raise_exception('ChatGLM 2 has no place for a message of the role ' ~ message.role ~ ': only user and assistant') -}}\
{%- endif -%}\
{%- endfor -%}";

/// `build_chat_input` of ChatGLM 3: each message is encoded by itself, so it begins with a space.
pub(super) const CHATGLM3: Format = Format { template: CHATGLM3_TEMPLATE, ends: &["<|user|>", "<|observation|>"] };

const CHATGLM3_TEMPLATE: &str = "[gMASK]sop\
{%- for message in messages -%}\
{%- if message.role not in ['system', 'user', 'assistant', 'observation'] -%}\
{{- raise_exception('ChatGLM 3 has no role ' ~ message.role) -}}\
{%- endif -%}\
{{- '<|' ~ message.role ~ '|>\n ' ~ message.content -}}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}";

/// `make_context` of Qwen 1.
pub(super) const CHATML: Format =
    Format { template: CHATML_TEMPLATE, ends: &["<|endoftext|>", "<|im_end|>", "<|im_start|>"] };

const CHATML_TEMPLATE: &str = "\
{%- if messages[0].role != 'system' -%}\
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}\
{%- endif -%}\
{%- for message in messages -%}\
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' -}}\
{%- if not loop.last or add_generation_prompt -%}{{- '\n' -}}{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";
