"""The requests of the retrieval routes, checked: every value that reaches the model has passed here.

One module for each client's way to ask. Each function takes the decoded JSON object and raises InvalidRequest naming
the field. Fields that are not known are ignored, as the OpenAI API does; those that would change the answer and cannot
be followed are refused.
"""
