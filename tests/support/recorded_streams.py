"""Cerebras streams as third parties recorded them (dcdpr/jp, August 2026), byte for byte."""

__all__ = ("TEXT", "TEXT_PAYLOADS", "TOOL_CALL", "TOOL_CALL_PAYLOADS")

# gpt-oss-120b; the request had "stream": true and no stream_options.
TEXT = (
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"role":"assistant"},"index":0}],"created":1787325819,"model":"gpt-oss-120b"'
    b',"system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.completion.chun'
    b'k"}\n\n'
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"reasoning":"We"},"index":0}],"created":1787325819,"model":"gpt-oss-120b","'
    b'system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.completion.chunk"'
    b"}\n\n"
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"reasoning":" just need to respond."},"index":0}],"created":1787325819,"mod'
    b'el":"gpt-oss-120b","system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"ch'
    b'at.completion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"content":"Your test message came through successfully!"},"index":0}],"crea'
    b'ted":1787325819,"model":"gpt-oss-120b","system_fingerprint":"fp_e2cabf4999eb0a'
    b'ead3d1","object":"chat.completion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"content":" Let me know if there\'s anything I can"},"index":0}],"created":1'
    b'787325819,"model":"gpt-oss-120b","system_fingerprint":"fp_e2cabf4999eb0aead3d1'
    b'","object":"chat.completion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{"content":" help you with."},"index":0}],"created":1787325819,"model":"gpt-'
    b'oss-120b","system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.comple'
    b'tion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta'
    b'":{},"finish_reason":"stop","index":0}],"created":1787325819,"model":"gpt-oss-'
    b'120b","system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.completion'
    b'.chunk","usage":{"total_tokens":104,"completion_tokens":35,"completion_tokens_'
    b'details":{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0,"reaso'
    b'ning_tokens":6},"prompt_tokens":69,"prompt_tokens_details":{"cached_tokens":0}'
    b'},"time_info":{"created":1787325819.1136928,"queue_time":0.003022741,"prompt_t'
    b'ime":0.002242227,"completion_time":0.018884338,"total_time":0.0274999141693115'
    b"23}}\n\n"
    b"data: [DONE]\n\n"
)
TEXT_PAYLOADS = 8

# The end of a stream with a tool call, of the same model.
TOOL_CALL = (
    b'data: {"id":"chatcmpl-672c279a-4827-4690-b382-608fda8b8a0c","choices":[{"delta'
    b'":{"tool_calls":[{"function":{"name":"run_me","arguments":""},"type":"function'
    b'","id":"08d59c72f","index":0}]},"index":0}],"created":1787325820,"model":"gpt-'
    b'oss-120b","system_fingerprint":"fp_4cfabdd6620dc0120785","object":"chat.comple'
    b'tion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-672c279a-4827-4690-b382-608fda8b8a0c","choices":[{"delta'
    b'":{"tool_calls":[{"function":{"arguments":"{\\"foo"},"type":"function","index":'
    b'0}]},"index":0}],"created":1787325820,"model":"gpt-oss-120b","system_fingerpri'
    b'nt":"fp_4cfabdd6620dc0120785","object":"chat.completion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-672c279a-4827-4690-b382-608fda8b8a0c","choices":[{"delta'
    b'":{"tool_calls":[{"function":{"arguments":"\\":\\"test\\",\\"bar\\":[\\"a\\",\\"b\\"]}"'
    b'},"type":"function","index":0}]},"index":0}],"created":1787325820,"model":"gpt'
    b'-oss-120b","system_fingerprint":"fp_4cfabdd6620dc0120785","object":"chat.compl'
    b'etion.chunk"}\n\n'
    b'data: {"id":"chatcmpl-672c279a-4827-4690-b382-608fda8b8a0c","choices":[{"delta'
    b'":{},"finish_reason":"tool_calls","index":0}],"created":1787325820,"model":"gp'
    b't-oss-120b","system_fingerprint":"fp_4cfabdd6620dc0120785","object":"chat.comp'
    b'letion.chunk","usage":{"total_tokens":256,"completion_tokens":120,"completion_'
    b'tokens_details":{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0'
    b',"reasoning_tokens":89},"prompt_tokens":136,"prompt_tokens_details":{"cached_t'
    b'okens":128}},"time_info":{"created":1787325820.792257,"queue_time":0.003457493'
    b',"prompt_time":0.004399205,"completion_time":0.065016835,"total_time":0.074509'
    b"3822479248}}\n\n"
    b"data: [DONE]\n\n"
)
TOOL_CALL_PAYLOADS = 5
