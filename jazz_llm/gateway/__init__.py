"""LLMs for any program, in any language, over one WebSocket (extra ``gateway``): the protocol, and what speaks it.

Every message is a JSON object in a frame of its own, text or binary, and has a ``type`` and the ``unique_request_id``
(text, 1 to 256 characters) of the request that it is, or belongs to. ``?``: may be missing or null. Fields that are not
known are ignored.

::

    in   load                   provider, api_key?, preload_model_id?, base_url?               first, or to ask elsewhere
    in   generate               messages, params?, stream?                                     once something is loaded
    in   interrupt              target?                                                        to end one generation, or all
    in   close                  -                                                              to end the gateway
    in   get_providers          -                                                              any time
    in   get_models             -                                                              once something is loaded
    out  load_ack               provider                                                       at once
    out  load_done              provider, is_error, error, error_detail                        key and endpoint were tried
    out  generate_ack           -                                                              at once
    out  generate_done          is_error, error, error_detail, response, usage, finish_reason  the whole answer
    out  generate_stream_chunk  chunk                                                          a piece of the answer
    out  generate_stream_done   is_error, error, error_detail, usage, finish_reason            after the last piece
    out  interrupt_ack          -                                                              at once; done messages follow
    out  close_ack              -                                                              at once; sockets close then
    out  get_providers_done     providers, key_needed, base_url_needed                         at once
    out  get_models_done        models, providers, is_error, error, error_detail               at once
    out  error                  error, error_detail                                            no done message fits

``load``: ``provider`` is a name out of ``get_providers``, or with a ``base_url`` (the client's own endpoint) any name;
``key_needed`` and ``base_url_needed`` are those of them that cannot be loaded without one. Without an ``api_key`` the gateway's
own environment may have one, which is never sent to a client's ``base_url``. The key is proved by listing the models, or by a
one-token call where there is no such list or all may read it; ``preload_model_id`` is warmed up, and is the model of requests
that name none. A load takes the place of the one before, which counts no more from then on: one that still runs ends with
INTERRUPT, generations run on to their end.

``generate``: ``messages`` of ``role``, ``content`` and ``name?``, as the chat API has them. ``params``, all of which may be
missing: ``model_id``; ``temperature``; ``max_output_length`` in tokens; ``stop_tokens``, texts; ``timeout_ms``, for a whole
answer, or for each wait of a stream for its next chunk (null: no limit; missing: 60 s); ``character_name``, the name of the
assistant's messages. Names are left out for providers of the registry that may refuse them; an endpoint that is none of those
gets the names in ``messages``, without ``character_name``. ``stream`` true: ``generate_ack``, chunks, ``generate_stream_done``;
else ``generate_ack``, ``generate_done``, whose ``response`` is "" if ``is_error``. ``usage`` has ``prompt_tokens``,
``completion_tokens``, ``total_tokens``, ``cached_tokens``, ``cache_write_tokens``, ``reasoning_tokens``, ``cost`` (USD) and
``estimated``; it is null where nothing is known. At most 64 run at once on one connection.

``interrupt``: ends the ``target`` (a load too), or every generation of the connection. ``close`` is for clients on the
gateway's own machine. An id may be used again once its done message came; while it runs, a second request with it is
answered with ``error``, and the first one goes on. ``error`` is for all that has no done message: broken JSON, no id (then
it is null), unknown types.

``error`` says ``SUCCESS``, or: ``AUTHORIZATION`` the key is missing or wrong, or may not do this; ``INVALID_PROMPT``
messages or params are wrong, too long, or filtered; ``INVALID_PROVIDER`` there is none of that name, or nothing is loaded;
``INVALID_MODEL`` there is none of that name; ``TIMEOUT``; ``INTERRUPT``; ``UNEXPECTED`` all else. ``error_detail`` is a
sentence for people, "" on success.

Messages of at most 16 MiB come in (else the socket is closed with 1009), with at most 200,000 ``{`` and ``[`` in them (else
``error``). To a client that reads too slowly chunks go out merged; it is closed with 1008 when 8 MiB wait for it, or when it
takes nothing for 30 s. A client that leaves interrupts what it had running. With a token, the handshake needs ``Authorization:
Bearer TOKEN`` or the subprotocol ``bearer.TOKEN``.
"""

try:
    from .server import Gateway
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "websockets":
        raise
    raise ImportError('The gateway needs websockets: pip install "jazz_llm[gateway]"') from None

__all__ = ["Gateway"]
