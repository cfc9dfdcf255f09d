"""The model server's front: one stable, checked chat-completions API before an inference engine.

The package ships alone into a serving environment. Its modules, in the order a request meets them:
`app` (HTTP), `chat_request` (what may be asked), `model_folder` (template, tokens, context), `engine_client`
(talking to the engine), `engine` (the engine's process), `errors` (what is said when it does not work).
"""
