//! Chat formats of models that have them in their own Python code and not in a file: the template, written in Jinja, and the
//! tokens that this code ends an answer at.

/// A chat format.
#[derive(Clone)]
pub(super) struct Format {
    pub template: &'static str,
    /// Control tokens that the template names by these variables, where a checkpoint's own files say which they are.
    pub tokens: Vec<(&'static str, String)>,
    /// Beside the end tokens that the configuration names.
    pub ends: &'static [&'static str],
}

/// `build_prompt` of ChatGLM 2: numbered rounds in plain text. The special tokens are those before every text.
pub(super) const CHATGLM2: Format = Format { template: CHATGLM2_TEMPLATE, tokens: Vec::new(), ends: &[] };

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
pub(super) const CHATGLM3: Format =
    Format { template: CHATGLM3_TEMPLATE, tokens: Vec::new(), ends: &["<|user|>", "<|observation|>"] };

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
    Format { template: CHATML_TEMPLATE, tokens: Vec::new(), ends: &["<|endoftext|>", "<|im_end|>", "<|im_start|>"] };

const CHATML_TEMPLATE: &str = "\
{%- if messages[0].role != 'system' -%}\
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}\
{%- endif -%}\
{%- for message in messages -%}\
{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' -}}\
{%- if not loop.last or add_generation_prompt -%}{{- '\n' -}}{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

/// `build_chat_input` of Baichuan 2, and of Baichuan 1 13B: a token before each message, and every message encoded by itself.
/// Neither a user's message nor an answer has an end.
pub(super) fn baichuan(user_token: String, assistant_token: String) -> Format {
    let tokens = vec![("user_token", user_token), ("assistant_token", assistant_token)];
    Format { template: BAICHUAN_TEMPLATE, tokens, ends: &[] }
}

const BAICHUAN_TEMPLATE: &str = "\
{%- for message in messages -%}\
{%- if message.role == 'system' and loop.first -%}\
{{- message.content -}}\
{%- elif message.role == 'user' -%}\
{{- user_token ~ message.content -}}\
{%- elif message.role == 'assistant' -%}\
{{- assistant_token ~ message.content -}}\
{%- else -%}\
{{- raise_exception('Baichuan has no place here for a message of the role ' ~ message.role ~ ': only user and assistant, \
and system as the first') -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt and messages[-1].role != 'assistant' -%}{{- assistant_token -}}{%- endif -%}";

/// `build_inputs` of InternLM 1: roles in plain text, and a token after an answer. The first code had one after a user's message
/// as well and no system message; it began every round that was over with a beginning of sequence, and the tokenizer put
/// its `frame` before all of them.
pub(super) fn internlm(first: bool, bos: &str, framed: bool) -> Format {
    let token = |text: &str| text.to_owned();
    let mut tokens = vec![("bos", token(bos)), ("eoa", token(INTERNLM_EOA))];
    if first {
        tokens.extend([("eoh", token("<eoh>")), ("frame", token(if framed { bos } else { "" }))]);
    }
    let template = if first { INTERNLM_FIRST_TEMPLATE } else { INTERNLM_TEMPLATE };
    Format { template, tokens, ends: &[INTERNLM_EOA] }
}

/// What ends an answer of InternLM 1.
pub(super) const INTERNLM_EOA: &str = "<eoa>";

const INTERNLM_FIRST_TEMPLATE: &str = "{{- frame -}}\
{%- for message in messages -%}\
{%- if message.role == 'user' -%}\
{%- if loop.first or not loop.last -%}{{- bos -}}{%- endif -%}\
{{- '<|User|>:' ~ message.content ~ eoh ~ '\n' -}}\
{%- elif message.role == 'assistant' -%}\
{{- '<|Bot|>:' ~ message.content ~ eoa ~ '\n' -}}\
{%- else -%}\
{{- raise_exception('this release of InternLM has no place for a message of the role ' ~ message.role ~ ': only user and \
assistant') -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|Bot|>:' -}}{%- endif -%}";

/// An empty system message leaves out the one that the code has.
const INTERNLM_TEMPLATE: &str = "{{- bos -}}\
{%- if messages[0].role != 'system' -%}\
{{- '<|System|>:You are an AI assistant whose name is InternLM (书生·浦语).\n\
- InternLM (书生·浦语) is a conversational language model that is developed by Shanghai AI Laboratory (上海人工智能实验室). \
It is designed to be helpful, honest, and harmless.\n\
- InternLM (书生·浦语) can understand and communicate fluently in the language chosen by the user such as English and 中文.\n' -}}\
{%- endif -%}\
{%- for message in messages -%}\
{%- if message.role == 'system' and loop.first -%}\
{%- if message.content -%}{{- '<|System|>:' ~ message.content ~ '\n' -}}{%- endif -%}\
{%- elif message.role == 'user' -%}\
{{- '<|User|>:' ~ message.content ~ '\n' -}}\
{%- elif message.role == 'assistant' -%}\
{{- '<|Bot|>:' ~ message.content ~ eoa ~ '\n' -}}\
{%- else -%}\
{{- raise_exception('InternLM has no place here for a message of the role ' ~ message.role ~ ': only user and assistant, \
and system as the first') -}}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{- '<|Bot|>:' -}}{%- endif -%}";
