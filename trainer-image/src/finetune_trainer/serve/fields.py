"""Fields of a request that are not served, and the values at which they change nothing.

Invariant: a name is listed if text, number or flag under it would change an answer; what nobody lists may be a client's own tag.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_trainer.data.templates import RENDERING

# Fields of OpenAI's that change no answer here.
IGNORED = frozenset({
    "user", "safety_identifier", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "prediction", "parallel_tool_calls",
})  # fmt: skip
# OpenAI's; those of one endpoint are not served at the other.
OPENAI: dict[str, tuple[object, ...]] = {
    "best_of": (1,), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "suffix": ("",),
    "echo": (False,), "modalities": (["text"],), "audio": (), "web_search_options": (), "moderation": (), "store": (False,),
    "verbosity": ("medium",), "reasoning_effort": ("none",), "max_completion_tokens": (), "top_logprobs": (0,), "messages": (),
    "prompt": (), "instructions": ("",), "max_output_tokens": (), "truncation": ("disabled",),
}  # fmt: skip
# Other servers': vLLM, SGLang, llama.cpp, Ollama, text-generation-inference and those that share their names. What only tells a
# listed one how (`mirostat_tau`, `dry_base`) is not here: it changes nothing alone.
ELSEWHERE: dict[str, tuple[object, ...]] = {
    # the form of the answer
    "format": ("",), "grammar": ("",), "json_schema": (), "regex": (), "ebnf": (), "structural_tag": (), "structured_outputs": (),
    "response_schema": (), "response_mime_type": ("text/plain",), "guided_json": (), "guided_regex": (), "guided_choice": (),
    "guided_grammar": (), "guided_json_object": (False,), "guided_decoding_backend": (), "guided_whitespace_pattern": (),
    # which token comes next
    "top_k": (0, -1), "min_p": (0,), "top_a": (0,), "typical_p": (1,), "tfs_z": (1,), "top_n_sigma": (0, -1), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "xtc_probability": (0,), "dry_multiplier": (0,), "dynatemp_range": (0,), "dynamic_temperature": (False,),
    "smoothing_factor": (0,), "mirostat": (0,), "mirostat_mode": (0,), "repetition_penalty": (1,), "repeat_penalty": (1,),
    "encoder_repetition_penalty": (1,), "no_repeat_ngram_size": (0,), "penalty_alpha": (0,), "guidance_scale": (1,),
    "negative_prompt": ("",), "do_sample": (True,), "random_seed": (), "use_beam_search": (False,), "num_beams": (1,),
    "length_penalty": (1,), "allowed_token_ids": ([],), "bad_words": ([],), "banned_tokens": ([], ""), "custom_token_bans": ("",),
    "logits_processors": ([],), "custom_logit_processor": ("",),
    # where the answer ends
    "max_new_tokens": (), "max_length": (), "num_predict": (), "n_predict": (), "num_ctx": (), "min_tokens": (0,),
    "min_new_tokens": (0,), "min_length": (0,), "stop_token_ids": ([],), "stop_sequences": ([],), "stop_words": ([],),
    "stop_regex": ([], ""), "include_stop_str_in_output": (False,), "no_stop_trim": (False,), "ban_eos_token": (False,),
    # what is read
    "system": ("",), "chat_template": (), "chat_template_kwargs": ({}, dict(RENDERING)), "enable_thinking": (False,),
    "think": (False,), "thinking": ({}, {"type": "disabled"}), "add_generation_prompt": (True,), "continue_final_message": (False,),
    "documents": ([],), "mm_processor_kwargs": ({},), "truncate_prompt_tokens": (), "safe_prompt": (False,), "lora_path": ("",),
    "adapter_id": ("",),
    # what is told of it
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "detokenize": (True,), "prompt_logprobs": (),
    "return_full_text": (False,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,),
}  # fmt: skip
NEUTRAL = OPENAI | ELSEWHERE
_SHORTEST = 8  # characters of a name that may be misspelt: shorter ones have neighbours that mean something else


class Names:
    """Finds which of `known` a name is that is written in another case, or of `optional` one with a letter left out, added or changed:
    what is not optional is missed anyway."""

    def __init__(self, known: Iterable[str], optional: Iterable[str]) -> None:
        self._written = {_plain(name): name for name in known}
        self._near = {cut: name for name in optional if len(_plain(name)) >= _SHORTEST for cut in _cuts(_plain(name))}
        self._longest = max(map(len, self._near)) + 1

    def meant(self, name: str) -> str | None:
        """The name that `name` stands for; None: it is something of its own."""
        plain = _plain(name)
        if plain in self._written or not _SHORTEST - 1 <= len(plain) <= self._longest:
            return self._written.get(plain)
        return next((self._near[cut] for cut in _cuts(plain) if cut in self._near), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _cuts(plain: str) -> list[str]:
    """`plain`, and it without each of its letters: names one letter apart have one of these in common."""
    return [plain, *(plain[:at] + plain[at + 1 :] for at in range(len(plain)))]
