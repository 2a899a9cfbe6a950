"""The API's side: connections, requests, retries."""
