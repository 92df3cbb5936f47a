#include "door/credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

namespace headrace::door {

std::shared_ptr<grpc::ServerCredentials> credentials_of(const Tls& tls) {
  if (!tls.is_on()) return grpc::InsecureServerCredentials();
  using grpc::experimental::FileWatcherCertificateProvider;
  const bool is_mutual = !tls.client_authority.empty();
  grpc::experimental::TlsServerCredentialsOptions options(
      is_mutual ? std::make_shared<FileWatcherCertificateProvider>(tls.key, tls.certificate, tls.client_authority,
                                                                   kRotationSeconds)
                : std::make_shared<FileWatcherCertificateProvider>(tls.key, tls.certificate, kRotationSeconds));
  options.watch_identity_key_cert_pairs();
  if (is_mutual) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  // Names are checked by callers; a server has nobody's name to check.
  options.set_check_call_host(false);
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace headrace::door
