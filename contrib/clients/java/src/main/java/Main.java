import java.io.FileInputStream;
import java.net.http.HttpClient;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.List;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.Callable;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import lvp.api.CacheApi;
import lvp.api.HostApi;
import lvp.api.JobsApi;
import lvp.api.VolumesApi;
import lvp.client.ApiClient;
import lvp.client.ApiException;
import lvp.model.ErrorResponse;
import lvp.model.Job;
import lvp.model.JobRequest;
import lvp.model.JobStatus;
import lvp.model.Principal;
import lvp.model.ProvisionedBy;

/** Uses the client that openapi-generator makes for Java: every value that the service answers is checked. */
public final class Main {
    private static final long SIZE_GB = 3;
    private static final long SIZE = SIZE_GB << 30;
    private static final List<JobStatus> ENDED =
            List.of(JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED);

    private final JobsApi jobs;
    private final VolumesApi volumes;
    private final CacheApi cache;
    private final HostApi host;

    private Main(ApiClient client) {
        jobs = new JobsApi(client);
        volumes = new VolumesApi(client);
        cache = new CacheApi(client);
        host = new HostApi(client);
    }

    public static void main(String[] arguments) throws Exception {
        var main = new Main(connect());
        var caller = main.host.whoami();
        equal("principal", caller.getPrincipal(), System.getenv("LVP_PRINCIPAL"));
        equal("role", caller.getRole(), Principal.RoleEnum.OPERATOR);
        equal("target is large", main.host.listTargets().getTargets().get(0).getSizeBytes() > SIZE, true);
        var volume = System.getenv("LVP_VOLUME");
        var ended = main.provision(volume);
        main.cancel(volume + "-cancelled");
        main.fail(ended);
    }

    /** Makes a client with a token, or else with a certificate. */
    private static ApiClient connect() throws Exception {
        var roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        try (var file = new FileInputStream(System.getenv("LVP_CA"))) {
            roots.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(roots);
        var token = System.getenv("LVP_TOKEN");
        var keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        var client = new ApiClient();
        if (token == null) {
            var password = System.getenv("LVP_KEY_STORE_PASSWORD").toCharArray();
            var store = KeyStore.getInstance("PKCS12");
            try (var file = new FileInputStream(System.getenv("LVP_KEY_STORE"))) {
                store.load(file, password);
            }
            keys.init(store, password);
        } else {
            client.setRequestInterceptor(request -> request.header("X-API-Token", token));
        }
        var tls = SSLContext.getInstance("TLS");
        tls.init(token == null ? keys.getKeyManagers() : null, trust.getTrustManagers(), null);
        client.setHttpClientBuilder(HttpClient.newBuilder().sslContext(tls));
        client.updateBaseUri(System.getenv("LVP_URL"));
        return client;
    }

    private Job wait(UUID id, List<JobStatus> wanted) throws Exception {
        for (int round = 0; round < 6000; round++) {
            var job = jobs.getJob(id);
            if (wanted.contains(job.getStatus())) {
                return job;
            }
            Thread.sleep(10);
        }
        throw new AssertionError("job " + id + " did not get to " + wanted);
    }

    /** Submits a job for a volume of 3 GiB, and finds it in every list. */
    private UUID provision(String volume) throws Exception {
        var checksum = System.getenv("LVP_CHECKSUM");
        var request = new JobRequest().volumeName(volume).imageUrl(System.getenv("LVP_IMAGE_URL")).volumeSizeGb(SIZE_GB);
        var plan = jobs.planJob(request);
        equal("volume_size_bytes", plan.getVolumeSizeBytes(), SIZE);
        equal("refusals", plan.getRefusals(), List.of());

        var job = wait(jobs.submitJob(request, null).getJobId(), ENDED);
        equal("status", job.getStatus(), JobStatus.COMPLETED);
        equal("volume.size_bytes", job.getVolume().getSizeBytes(), SIZE);
        equal("volume.provisioned_by", job.getVolume().getProvisionedBy(), ProvisionedBy.COPY);
        equal("bytes_total", job.getProgress().getBytesTotal(), SIZE);
        equal("bytes_processed", job.getProgress().getBytesProcessed(), SIZE);
        equal("percent", job.getProgress().getPercent(), 100.0);
        equal("request.volume_size_gb", job.getRequest().getVolumeSizeGb(), SIZE_GB);
        equal("submitted_by", job.getSubmittedBy(), System.getenv("LVP_PRINCIPAL"));
        equal("waiting_for", job.getWaitingFor(), null);
        equal("created_at is later", job.getCreatedAt().isAfter(job.getUpdatedAt()), false);

        var page = jobs.listJobs(JobStatus.COMPLETED, volume, null, null, 0, 5);
        equal("count", page.getCount(), 1L);
        equal("limit", page.getLimit(), 5);
        equal("jobs[0].job_id", page.getJobs().get(0).getJobId(), job.getJobId());
        var found = volumes.listVolumes(null, null).getVolumes().stream()
                .filter(one -> one.getName().equals(volume)).findFirst().orElseThrow();
        equal("size_bytes", found.getSizeBytes(), SIZE);
        equal("checksum", found.getChecksum(), checksum);
        equal("job_id", found.getJobId(), job.getJobId().toString());
        var image = cache.listCachedImages(checksum.substring(0, 12), null, null).getImages().get(0);
        equal("virtual_size", image.getVirtualSize(), SIZE);
        equal("digest", image.getDigest(), "sha256:" + checksum);
        return job.getJobId();
    }

    private void cancel(String volume) throws Exception {
        var request = new JobRequest().volumeName(volume).imageUrl(System.getenv("LVP_HELD_URL")).imageType("raw");
        var id = jobs.submitJob(request.priority(-7), null).getJobId();
        equal("priority", wait(id, List.of(JobStatus.RUNNING)).getRequest().getPriority(), -7);
        equal("job_id", jobs.cancelJob(id).getJobId(), id);
        equal("status", wait(id, ENDED).getStatus(), JobStatus.CANCELLED);
    }

    private void fail(UUID ended) throws Exception {
        var foreign = new JobRequest().volumeName("x").imageUrl("https://elsewhere.example/disk.qcow2");
        var unknown = refused(404, () -> jobs.getJob(UUID.randomUUID()));
        equal("error", unknown.getError(), "job not found");
        refused(400, () -> jobs.cancelJob(ended));
        refused(400, () -> jobs.submitJob(foreign, null));
    }

    /** Reads the error of a call that is refused with this status. */
    private static ErrorResponse refused(int status, Callable<?> call) throws Exception {
        try {
            call.call();
        } catch (ApiException exception) {
            var mapper = ApiClient.createDefaultObjectMapper();
            var error = mapper.readValue(exception.getResponseBody(), ErrorResponse.class);
            equal("status", exception.getCode(), status);
            equal("code", error.getCode(), status);
            equal("message is empty", error.getMessage().isEmpty(), false);
            equal("has a request id", exception.getResponseHeaders().firstValue("X-Request-ID").isPresent(), true);
            return error;
        }
        throw new AssertionError("no error " + status);
    }

    private static void equal(String what, Object found, Object wanted) {
        if (!Objects.equals(found, wanted)) {
            throw new AssertionError(what + " is " + found + ", not " + wanted);
        }
    }
}
