"""The routes of the Responses API, one table for the application and for its OpenAPI document.

In: nothing. Out: method, path, handler, and what the operation does, in a few words.
"""

from server import conversations, response_routes, responses

RESPONSE_ROUTES = (
    (
        *("POST", "/responses", responses.create_response),
        "Ask an agent, or an upstream's model, for a response",
    ),
    ("GET", "/responses/{id}", response_routes.get_response, "A kept response, or its stream"),
    ("DELETE", "/responses/{id}", response_routes.delete_response, "Forget a response"),
    ("POST", "/responses/{id}/cancel", response_routes.cancel_response, "End a background run"),
    (
        *("GET", "/responses/{id}/input_items", response_routes.list_input_items),
        "What a response was asked with",
    ),
    ("POST", "/conversations", conversations.create_conversation, "A new conversation"),
    ("GET", "/conversations/{id}", conversations.get_conversation, "A conversation"),
    ("POST", "/conversations/{id}", conversations.update_conversation, "New metadata"),
    ("DELETE", "/conversations/{id}", conversations.delete_conversation, "Forget a conversation"),
    ("GET", "/conversations/{id}/items", conversations.list_items, "Items of a conversation"),
    ("POST", "/conversations/{id}/items", conversations.create_items, "More items"),
    ("GET", "/conversations/{id}/items/{item_id}", conversations.get_item, "One item"),
    ("DELETE", "/conversations/{id}/items/{item_id}", conversations.delete_item, "Forget an item"),
)
