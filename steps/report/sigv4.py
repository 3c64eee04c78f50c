"""AWS' Signature Version 4 for `requests`, as SageMaker's MLflow wants it. Signs by botocore; credentials are botocore's own."""

from __future__ import annotations

import hashlib
from typing import Any

import requests
from requests.auth import AuthBase

from steps.report.sink import ReportError


class SigV4(AuthBase):
    """Signs each request with the credentials of the environment, looked up anew: they expire."""

    def __init__(self, service: str, region: str) -> None:
        self.service, self.region = service, region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with its signature.

        Raises:
            ReportError: there are no AWS credentials.
        """
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.session import Session

        credentials = Session().get_credentials()
        if credentials is None:
            raise ReportError("no AWS credentials where the flow runs")
        body: Any = request.body or b""
        data = body.encode() if isinstance(body, str) else body
        kept = {name: value for name, value in request.headers.items() if name.lower() != "connection"}
        kept["X-Amz-Content-SHA256"] = hashlib.sha256(data).hexdigest()
        signed = AWSRequest(method=request.method, url=request.url, data=data, headers=kept)
        SigV4Auth(credentials.get_frozen_credentials(), self.service, self.region).add_auth(signed)
        request.headers.update(dict(signed.headers))
        return request
