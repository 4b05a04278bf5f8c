"""An S3-compatible store for tests: moto's, with callers told apart. Serves until standard input ends.

Arguments, if any: certificate and key for https. Prints one line of JSON: endpoint, and the access key of the one user who
may use it. Then answers each line of standard input with one of JSON:

    limit [N]   refuses parts of uploads with numbers beyond N; without N, none
    lose        carries out the next completion of an upload, and loses its answer
    parts       how many parts came
    list        names of objects, and after them of uploads that are not ended
"""

import json
import os
import ssl
import sys
import threading
from urllib.parse import parse_qs

# The calls that make the user and the bucket need no credentials; all that follow do.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

REFUSAL = b"<Error><Code>Interrupted</Code><Message>no more parts now</Message></Error>"
BUCKET = "backups"


class Store:
    """moto's, with the faults of networks."""

    def __init__(self):
        self.store = DomainDispatcherApplication(create_backend_app)
        self.limit = None
        self.parts = 0
        self.lose = False

    def __call__(self, environ, start_response):
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        if method == "PUT" and "partNumber=" in query:
            number = int(parse_qs(query)["partNumber"][0])
            if self.limit is not None and number > self.limit:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("400 Bad Request", [("Content-Length", str(len(REFUSAL)))])
                return [REFUSAL]
            self.parts += 1
        if method == "POST" and "uploadId=" in query and self.lose:
            self.lose = False
            list(self.store(environ, lambda *_: None))
            start_response("502 Bad Gateway", [("Content-Length", "0")])
            return []
        return self.store(environ, start_response)


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


def main():
    store = Store()
    tls = None
    if len(sys.argv) > 2:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(sys.argv[1], sys.argv[2])
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Quiet, ssl_context=tls)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"{'https' if tls else 'http'}://localhost:{server.server_port}"

    def client(service, key="x", secret="x"):
        return boto3.client(
            service,
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            verify=sys.argv[1] if tls else None,
        )

    iam = client("iam")
    iam.create_user(UserName="u")
    key = iam.create_access_key(UserName="u")["AccessKey"]
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(everything))
    client("s3").create_bucket(Bucket=BUCKET)
    reader = client("s3", key["AccessKeyId"], key["SecretAccessKey"])
    print(json.dumps({"endpoint": endpoint, "id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}), flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        answer = store.parts
        if word == "limit":
            store.limit = int(rest[0]) if rest else None
        elif word == "lose":
            store.lose = True
        elif word == "list":
            answer = [found["Key"] for found in reader.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
            uploads = reader.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
            answer += ["upload of " + found["Key"] for found in uploads]
        print(json.dumps(answer), flush=True)
    server.shutdown()


main()
